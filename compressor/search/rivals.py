"""What others make of the same model: ONNX Runtime's dynamic int8, where it is installed."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from compressor.capture import Flat
from compressor.evaluation.evaluation import Run
from compressor.model import Model

ONNX: Final = "ONNX Runtime int8"


def onnx_int8(model: Model, folder: Path) -> Run:
    """ONNX Runtime's dynamic int8 of the model on one thread, made as its makers recommend: fp32 export, its
    pre-processing, per channel.

    Raises:
        ImportError: ONNX Runtime or its tools are not installed.
        RuntimeError: it could not be exported or quantized; the message says why.
    """
    import onnxruntime  # noqa: PLC0415 (optional: a rival is only compared with where it is installed)
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    path = folder / f"onnx-int8-{onnxruntime.__version__}.onnx"
    names = [item.name for item in model.inputs]
    if not path.is_file():
        exact, prepared, partial = folder / "exact.onnx", folder / "prepared.onnx", folder / "partial.onnx"
        try:
            _export(model, exact, names)
            quant_pre_process(str(exact), str(prepared), skip_symbolic_shape=True)
            quantize_dynamic(str(prepared), str(partial), weight_type=QuantType.QInt8, per_channel=True)
            partial.rename(path)
        except Exception as error:  # both libraries raise errors of many unrelated types
            raise RuntimeError(f"{type(error).__name__}: {str(error).strip()[:300]}") from error
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
