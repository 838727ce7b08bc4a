"""Runs the code in a compiled CPU package through its C interface, so that Python goes on meanwhile.

PyTorch's own loader holds the interpreter's lock for a whole run: the worker's event loop would stand still for as long
as a batch takes, and neither answer, nor forward the batch before, nor hear of a cancelled request. The interface is
`torch/csrc/inductor/aoti_runtime/interface.h`; a call through `ctypes` gives the lock away.
"""

import ctypes
import os
import re
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

_LIBRARY: Final = re.compile(r"[^/]+/data/aotinductor/model/[^/]+\.so")
_PROXY: Final = re.compile(r"[^/]+/data/aotinductor/model/[^/]+\.wrapper\.json")
"""Lists operators that the code reaches through PyTorch's dispatcher, which the C interface alone does not offer."""

_POINTER: Final = ctypes.c_void_p
_CREATE: Final = (ctypes.POINTER(_POINTER), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p)
_RUN: Final = (_POINTER, _POINTER, ctypes.c_size_t, _POINTER, ctypes.c_size_t, _POINTER, _POINTER)
_COUNT: Final = (_POINTER, ctypes.POINTER(ctypes.c_size_t))

_pointer_of: Final = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = _POINTER, (ctypes.py_object, ctypes.c_char_p)
_capsule_of: Final = ctypes.pythonapi.PyCapsule_New
_capsule_of.restype, _capsule_of.argtypes = ctypes.py_object, (_POINTER, ctypes.c_char_p, _POINTER)


def runs_natively(package: Path) -> bool:
    """Whether `NativePackage` can run it: one library, which needs nothing but the C interface."""
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    return sum(map(bool, map(_LIBRARY.fullmatch, names))) == 1 and not any(map(_PROXY.fullmatch, names))


class NativePackage:
    """A loaded package. One call at a time. Its weights leave the process with it, its code stays."""

    def __init__(self, package: Path) -> None:
        """Raises OSError where the library cannot be loaded, RuntimeError where it does not start."""
        with tempfile.TemporaryDirectory(prefix="shardline-") as folder:
            library = _extracted(package, Path(folder))
            self._code = ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL)
            self._container = _POINTER()
            weakref.finalize(self, _free, self._code, self._container).atexit = False
            self._call(
                "AOTInductorModelContainerCreateWithDevice", _CREATE, ctypes.byref(self._container), 1, b"cpu", b""
            )
        self._run = self._function("AOTInductorModelContainerRunSingleThreaded", _RUN)
        self._inputs = self._count("AOTInductorModelContainerGetNumInputs")
        self._outputs = self._count("AOTInductorModelContainerGetNumOutputs")

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs, in the package's order.

        Raises:
            RuntimeError: other sizes than the code was compiled for, or it failed; standard error says which.
        """
        if len(inputs) != self._inputs:
            raise RuntimeError(f"{len(inputs)} tensors; the compiled package takes {self._inputs}")
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        given = (_POINTER * len(handles))(*(_pointer_of(handle, None) for handle in handles))
        made = (_POINTER * self._outputs)()
        # The run takes the inputs' handles over, also where it fails.
        if self._run(self._container, given, len(given), made, len(made), None, None) != 0:
            raise RuntimeError("the compiled package's run failed; standard error says why")
        capsules = [_capsule_of(pointer, None, None) for pointer in made]
        outputs: list[torch.Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return outputs

    def _count(self, name: str) -> int:
        count = ctypes.c_size_t()
        self._call(name, _COUNT, self._container, ctypes.byref(count))
        return count.value

    def _call(self, name: str, types: tuple[Any, ...], *arguments: object) -> None:
        if self._function(name, types)(*arguments) != 0:
            raise RuntimeError(f"{name} failed; standard error says why")

    def _function(self, name: str, types: tuple[Any, ...]) -> Callable[..., int]:
        function = self._code[name]
        function.argtypes, function.restype = types, ctypes.c_int32
        return function


def _free(code: ctypes.CDLL, container: ctypes.c_void_p) -> None:
    """The weights, if the container was made. Closing the library would free nothing: it has symbols that are unique to
    the process.
    """
    if container:
        code["AOTInductorModelContainerDelete"](container)


def _extracted(package: Path, folder: Path) -> Path:
    with zipfile.ZipFile(package) as archive:
        (name,) = filter(_LIBRARY.fullmatch, archive.namelist())
        library = folder / "model.so"
        with archive.open(name) as source, library.open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
    return library
