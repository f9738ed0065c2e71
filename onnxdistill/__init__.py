"""Turn a slow PyTorch teacher into a small, measured, verified int8 ONNX student.

`compress` runs a recipe and needs the extra `compress`, as do `compress_front`, which runs it for several speeds,
`quantize_onnx`, which takes an ONNX file alone, `load_student`, which gives a run's student as a PyTorch module, and
`assist`, which takes part in the trainings of another process under `torchrun`, and `export_untrained`, which writes a
recipe's teacher for `onnxdistill profile`; `bench` times ONNX files and needs only ONNX Runtime. They are imported on
first use, so that importing the package costs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING

from onnxdistill.errors import MissingPackageError

if TYPE_CHECKING:
    from onnxdistill.device.bench import bench
    from onnxdistill.front import compress_front
    from onnxdistill.onnxpipeline import quantize_onnx
    from onnxdistill.pipeline import assist, compress
    from onnxdistill.student import load_student
    from onnxdistill.teacherfile import export_untrained

    __version__: str

__all__ = [
    "__version__",
    "assist",
    "bench",
    "compress",
    "compress_front",
    "export_untrained",
    "load_student",
    "quantize_onnx",
]

_HOMES = {
    "assist": "onnxdistill.pipeline",
    "bench": "onnxdistill.device.bench",
    "compress": "onnxdistill.pipeline",
    "compress_front": "onnxdistill.front",
    "export_untrained": "onnxdistill.teacherfile",
    "load_student": "onnxdistill.student",
    "quantize_onnx": "onnxdistill.onnxpipeline",
}

# The modules, not the distributions, that the extra `compress` brings.
_COMPRESS_MODULES = frozenset(
    {
        "filelock",
        "jinja2",
        "matplotlib",
        "numba",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "pydantic",
        "scipy",
        "sklearn",
        "tomli_w",
        "torch",
        "torchmetrics",
        "torchvision",
    }
)


def __getattr__(name: str) -> object:
    """Imports `bench`, `compress` or the version on first use.

    Raises:
        MissingPackageError: If a package of an extra is not installed; the message names the extra.
        AttributeError: If there is no such name.
    """
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in _COMPRESS_MODULES:
            # The extras `cpu` and `gpu` overwrite each other.
            extras = "compress" if importlib.util.find_spec("onnxruntime") else "compress,cpu"
            raise MissingPackageError(
                f"{name} needs the package {module}, which is not installed.",
                f"Install the extra: pip install 'onnxdistill[{extras}]'.",
            ) from error
        if module == "onnxruntime":
            raise MissingPackageError(
                f"{name} needs ONNX Runtime, which is not installed.",
                "Install one of the extras: pip install 'onnxdistill[cpu]' or 'onnxdistill[gpu]'.",
            ) from error
        raise


def _version() -> str:
    try:
        return importlib.metadata.version("onnxdistill")
    except importlib.metadata.PackageNotFoundError:
        # A source tree on the path that was never installed has no metadata to read.
        return "0+source"
