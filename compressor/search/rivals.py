"""What others make of the same model: ONNX Runtime's dynamic int8, where it is installed and works."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from compressor.capture import Flat
from compressor.evaluation.evaluation import Run
from compressor.model import Model

ONNX: Final = "ONNX Runtime int8"

T = TypeVar("T")


def tried(make: Callable[[], T]) -> T | str:
    """What `make` gives, or why there is none: a rival that does not work must not end a search that has."""
    try:
        return make()
    except ImportError:
        return "not installed"
    except Exception as error:  # noqa: BLE001 (others' libraries raise errors of many unrelated types)
        return f"{type(error).__name__}: {str(error).strip()[:300]}"


def onnx_file(work: Path, key: str) -> Path:
    """Where ONNX Runtime's program of the model lies; `key`: of what decides it, the model above all.

    Raises:
        ImportError: it is not installed.
    """
    import onnxruntime  # noqa: PLC0415 (optional; and other distributions than the one of its name bring it)

    return work / f"onnx-int8-{key}-{onnxruntime.__version__}.onnx"


def onnx_int8(model: Model, path: Path) -> Run:
    """ONNX Runtime's dynamic int8 of the model on one thread, made as its makers recommend: fp32 export, its
    pre-processing, per channel. It is written as `path`, or taken from there.

    Raises:
        ImportError: ONNX Runtime or its tools are not installed.
        Exception: whatever they raise where it cannot be exported, quantized or loaded.
    """
    import onnxruntime  # noqa: PLC0415 (optional: a rival is only compared with where it is installed)
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    names = [item.name for item in model.inputs]
    if not path.is_file():
        folder = path.parent
        exact, prepared, partial = folder / "exact.onnx", folder / "prepared.onnx", folder / "partial.onnx"
        try:
            _export(model, exact, names)
            quant_pre_process(str(exact), str(prepared), skip_symbolic_shape=True)
            quantize_dynamic(str(prepared), str(partial), weight_type=QuantType.QInt8, per_channel=True)
            partial.rename(path)
        finally:
            for each in (exact, prepared, partial):
                with contextlib.suppress(FileNotFoundError):
                    each.unlink()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        given: dict[str, Any] = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, given))

    return run


def _export(model: Model, path: Path, names: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {
            item.name: {place: axis for place, axis in enumerate(item.axes) if axis is not None}
            for item in model.inputs
        }
        torch.onnx.export(
            Flat(model.module),
            tuple(item.example for item in model.inputs),
            str(path),
            input_names=list(names),
            output_names=["output"],
            dynamic_axes=axes | {"output": {0: "batch"}},
            opset_version=17,
            # The exporter that needs no further package.
            dynamo=False,
        )
