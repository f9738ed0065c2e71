"""Shapes of everything in a model: a quantizer leaves in float what has none."""

from __future__ import annotations

import contextlib
import io
import logging

import onnx
from onnx import shape_inference


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infers shapes by ONNX Runtime's symbolic inference, and where that gives up by ONNX's own.

    The symbolic one knows the size of what is computed from other sizes, as in attention. It gives up on some models,
    with exceptions of every kind: torchvision's detectors end in `TypeError: Argument of Integer should be of numeric
    type, got Min(150, NonMaxSuppression_283_o0__d0)` or in `Exception: Incomplete symbolic shape inference`.
    """
    return shape_inference.infer_shapes(_symbolic(model) or model, data_prop=True)


def _symbolic(model: onnx.ModelProto) -> onnx.ModelProto | None:
    logger = logging.getLogger("onnxruntime.tools.symbolic_shape_infer")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

        with contextlib.redirect_stdout(io.StringIO()):
            return SymbolicShapeInference.infer_shapes(model)
    except Exception:  # noqa: BLE001  # it raises Exception itself, and whatever its own faults come to
        return None
    finally:
        logger.setLevel(level)
