"""Quantization-aware training of a QDQ ONNX file: a module that computes what the file means, and writes it again."""

from __future__ import annotations

from onnxdistill.fakequant.network import FakeQuantized
from onnxdistill.fakequant.node import UnsupportedOperatorError

__all__ = ["FakeQuantized", "UnsupportedOperatorError"]
