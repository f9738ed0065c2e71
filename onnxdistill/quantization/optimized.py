"""What ONNX Runtime makes of a model before it runs it, as a model again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime

from onnxdistill.device.modelfile import explain_load_failure
from onnxdistill.errors import ModelFileError

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def optimized(
    model: onnx.ModelProto, level: Literal["basic", "extended"], config: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The optimized graph of a model, for the CPU.

    Args:
        model: With its weights inside. It is not changed.
        level: How far it is rewritten: `basic` keeps the standard operators.
        config: Entries of the session's configuration.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or cannot write what it makes of it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.log_severity_level = 4
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own, one for each of its status codes
            if "serialization failed" in str(error):  # of a model that it has loaded, and in its words damaged
                _check_room(path, model.ByteSize())
                raise ModelFileError(f"ONNX Runtime cannot write what it made of the model: {error}") from error
            raise explain_load_failure(None, error, onnxruntime.__version__) from error
        return onnx.load(path)


def _check_room(path: Path, size_bytes: int) -> None:
    """Raises what the operating system says when a file of that size is written."""
    try:
        path.write_bytes(bytes(size_bytes))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
