"""ONNX models spelled out as the protocol buffers of onnx.proto, since the device half has no `onnx`.

Only as much of the format as small models of known shapes need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxdistill.device.session import Array

_IR_VERSION, _OPSET = 8, 17
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
_INT, _INTS = 2, 7  # AttributeProto.AttributeType


@dataclass(frozen=True)
class Node:
    """One operator of the default domain, named like its first output.

    Attributes:
        op_type: As the ONNX standard calls it.
        inputs: Names of values.
        outputs: Names of values.
        attributes: Integers, or lists of them, by name.
    """

    op_type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """An input or an output of a model.

    Attributes:
        name: Of the value.
        dtype: Name of a numpy type.
        shape: Known sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def model_bytes(
    nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value], constants: Mapping[str, Array]
) -> bytes:
    """The content of an .onnx file.

    Args:
        nodes: In an order in which they can run.
        inputs: Of the model.
        outputs: Of the model.
        constants: Weights by name.

    Raises:
        KeyError: If a value is of a type that has no number here.
    """
    graph = (
        b"".join(_bytes(1, _node(node)) for node in nodes)
        + _text(2, "graph")
        + b"".join(_bytes(5, _tensor(name, array)) for name, array in constants.items())
        + b"".join(_bytes(11, _value_info(value)) for value in inputs)
        + b"".join(_bytes(12, _value_info(value)) for value in outputs)
    )
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def _node(node: Node) -> bytes:
    return (
        b"".join(_text(1, name) for name in node.inputs)
        + b"".join(_text(2, name) for name in node.outputs)
        + _text(3, node.outputs[0])
        + _text(4, node.op_type)
        + b"".join(_bytes(5, _attribute(name, value)) for name, value in node.attributes.items())
    )


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, item) for item in value) + _number(20, _INTS)


def _tensor(name: str, array: Array) -> bytes:
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, _ELEMENT_TYPES[array.dtype.name]) + _text(8, name) + _bytes(9, content)


def _value_info(value: Value) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in value.shape)
    tensor_type = _number(1, _ELEMENT_TYPES[value.dtype]) + _bytes(2, shape)
    return _text(1, value.name) + _bytes(2, _bytes(1, tensor_type))


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3) + _varint(value)


def _text(field_number: int, value: str) -> bytes:
    return _bytes(field_number, value.encode())


def _bytes(field_number: int, value: bytes) -> bytes:
    return _varint(field_number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
