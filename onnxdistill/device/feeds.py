"""Random inputs of the right names, dtypes and shapes for a model that is to be timed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from onnxdistill.device.host import memory_bytes
from onnxdistill.device.session import Array, Port, Session, shape_fits
from onnxdistill.errors import UsageError

# Of the memory; the model itself holds at least as much again, in outputs and in between.
_SHARE = 0.5
# No machine of today has more; for systems that do not tell.
_MOST_BYTES = 1 << 45


def random_feeds(
    session: Session,
    batch: int,
    shapes: Mapping[str, tuple[int, ...]],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """One array per input: normal floats, 0 or 1 for wide integers (valid as an index), any byte for bytes.

    Args:
        session: The opened model.
        batch: Size of the first dimension of every input.
        shapes: Whole shapes of the inputs that have other open dimensions. A first dimension that the model
            fixes is then taken as it is, since it need not be the batch.
        rng: Where the values come from.

    Raises:
        UsageError: If a shape is missing, does not fit, contradicts `batch`, or asks for more than the memory.
    """
    chosen = {port.name: _shape(session, port, batch, shapes) for port in session.inputs}
    for port in session.inputs:
        size = prod(chosen[port.name]) * (1 if port.dtype is None else port.dtype.itemsize)
        check_memory(f"{session.label}: the input {port.name!r} as {list(chosen[port.name])}", size)
    return {port.name: _values(session, port, chosen[port.name], rng) for port in session.inputs}


def check_memory(what: str, size_bytes: int) -> None:
    """Makes sure, before it is allocated, that this machine could hold an input.

    Args:
        what: Names the input, as the beginning of a sentence.
        size_bytes: What it would take.

    Raises:
        UsageError: If it takes so much of the memory that the model cannot run beside it.
    """
    memory = memory_bytes()
    if size_bytes > _SHARE * (memory or _MOST_BYTES):
        here = "" if memory is None else f", and this machine has {memory / 1e9:,.1f} GB of memory"
        raise UsageError(f"{what} takes {size_bytes / 1e9:,.1f} GB{here}.", "Ask for a smaller batch or shape.")


def _shape(session: Session, port: Port, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if port.name in shapes:
        return _given_shape(session, port, batch, shapes[port.name])
    if not port.shape:
        return ()
    first = port.shape[0]
    if isinstance(first, int) and first != batch:
        raise UsageError(
            f"{session.label} fixes the first dimension of its input {port} to {first}, "
            f"and a batch of {batch} was asked for.",
            f"Use --batch {first}, or --shape {_example(port)} if that dimension is not the batch.",
        )
    shape = []
    for size in port.shape:
        if isinstance(size, str) and size != first:
            raise UsageError(
                f"{session.label} leaves the dimension {size!r} of its input {port} open.",
                f"Say its size, for example --shape {_example(port)}.",
            )
        shape.append(batch if isinstance(size, str) else size)
    return tuple(shape)


def _given_shape(session: Session, port: Port, batch: int, given: tuple[int, ...]) -> tuple[int, ...]:
    text = "x".join(map(str, given))
    if not shape_fits(given, port.shape):
        raise UsageError(f"{session.label}: --shape {port.name}={text} does not fit the input {port}.")
    if port.shape and isinstance(port.shape[0], str) and given[0] != batch:
        raise UsageError(
            f"{session.label}: --shape {port.name}={text} has a batch of {given[0]}, "
            f"and a batch of {batch} was asked for.",
            f"Add --batch {given[0]}.",
        )
    return given


def _example(port: Port) -> str:
    sizes = [size if isinstance(size, int) else 1 if axis == 0 else 224 for axis, size in enumerate(port.shape)]
    return f"{port.name}={'x'.join(map(str, sizes))}"


def _values(session: Session, port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = port.dtype
    if dtype is None or dtype.kind == "O":
        raise UsageError(
            f"{session.label} has an input {port} that random numbers cannot fill.",
            "Only inputs that are numeric tensors can be timed.",
        )
    if dtype.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, size=shape, endpoint=True, dtype=dtype.type)
    return rng.integers(0, 2, size=shape, dtype=dtype.type)
