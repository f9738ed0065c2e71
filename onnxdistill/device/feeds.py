"""Inputs of the right names, dtypes and shapes for a model that is to be timed: random ones, or from a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from onnxdistill.device.cases import Case
from onnxdistill.device.host import memory_bytes
from onnxdistill.device.session import Array, Port, Session, shape_fits
from onnxdistill.errors import DataError, UsageError

# What outputs are compared on, if no inputs are given.
_RANDOM_ITEMS = 64

# Of the memory; the model itself holds at least as much again, in outputs and in between.
_SHARE = 0.5
# No machine of today has more; for systems that do not tell.
_MOST_BYTES = 1 << 45


class InputSource:
    """Gives the inputs of every model of a benchmark.

    Args:
        shapes: Whole shapes by input name, where a model leaves more open than the batch.
        inputs: Arrays by input name, instead of random ones; None for random ones.
        seed: Of the random ones; every model gets the same.
        batches: That are asked for; a shape that is of one of them stands for the others as well.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        inputs: Mapping[str, Array] | None,
        seed: int,
        batches: Collection[int] = (),
    ) -> None:
        self._batches = batches
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._inputs = inputs
        self._seed = seed

    def feeds(self, case: Case, session: Session) -> dict[str, Array]:
        """One batch for a case.

        Raises:
            UsageError: See `random_feeds` and `given_feeds`.
        """
        return next(self.batches(case.batch, session))

    def batches(self, batch: int, session: Session) -> Iterator[dict[str, Array]]:
        """All given items in batches; or as many random ones as make a comparison.

        Raises:
            UsageError: See `random_feeds` and `given_feeds`.
        """
        if self._inputs is None:
            rng = np.random.default_rng(self._seed)
            for _ in range(max(1, _RANDOM_ITEMS // batch)):
                yield random_feeds(session, batch, self._own_shapes(session, batch), rng)
            return
        shapes = self._own_shapes(session, batch)
        yield given_feeds(session, batch, self._inputs, shapes)
        fewest = min(len(array) if array.ndim else 1 for array in self._inputs.values())
        for begin in range(batch, fewest - batch + 1, batch):
            yield given_feeds(session, batch, self._inputs, shapes, begin)

    def check_shapes_used(self, sessions: Iterable[Session]) -> None:
        """Makes sure that each shape is of an input of some model.

        Raises:
            UsageError: At the first that is not.
        """
        known = {port.name for session in sessions for port in session.inputs}
        if unknown := self._shapes.keys() - known:
            raise UsageError(
                f"A shape is given for {min(unknown)!r}, which no model has as an input.",
                f"The inputs are: {', '.join(sorted(known))}.",
            )

    def check_same_work(self, feeds: Mapping[str, Mapping[str, Array]], batches: Mapping[str, int]) -> None:
        """Makes sure that models which get the same arrays are timed on as many items of them.

        Args:
            feeds: What every case gets, by its name.
            batches: Items a call, by its name.

        Raises:
            UsageError: If a model fixes its batch, and another one takes the batch that was asked for.
        """
        seen: dict[tuple[str, int], tuple[str, Array]] = {}
        for other, arrays in feeds.items() if self._inputs is not None else ():
            for name, array in arrays.items():
                one, first = seen.setdefault((name, batches[other]), (other, array))
                if first.shape != array.shape:
                    sizes = [list(known.shape) for known in (first, array)]
                    raise UsageError(
                        f"The input {name!r} of {one} is {sizes[0]} and that of {other} {sizes[1]}: their times would "
                        "not be those of the same work.",
                        "Ask for the --batch that one of them fixes.",
                    )

    def _own_shapes(self, session: Session, batch: int) -> dict[str, tuple[int, ...]]:
        found = {port.name: self._shapes[port.name] for port in session.inputs if port.name in self._shapes}
        for port in session.inputs:
            shape = found.get(port.name)
            if shape and port.shape and isinstance(port.shape[0], str) and shape[0] in self._batches:
                found[port.name] = (batch, *shape[1:])
        return found


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


def given_feeds(
    session: Session,
    batch: int,
    inputs: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    begin: int = 0,
) -> dict[str, Array]:
    """A batch of items from arrays that may hold more; an input whose first dimension is fixed gets all of its array.

    Args:
        session: The opened model.
        batch: Items in a batch.
        inputs: Arrays by input name.
        shapes: Whole shapes of inputs whose first dimension is fixed, and need not be the batch.
        begin: The first item.

    Raises:
        UsageError: If an input has no array, or an array too few items, or if the model takes another number of items.
    """
    feeds = dict(inputs)
    first = {port.shape[0] for port in session.inputs if port.shape}
    if not shapes and len(first) == 1 and isinstance(size := first.pop(), int) and size != batch:
        one = next(port for port in session.inputs if port.shape)
        raise UsageError(
            f"{session.label} fixes the first dimension of its inputs to {size}, and a batch of {batch} was asked for.",
            f"Use --batch {size}, or --shape {_example(one)} if that dimension is not the batch.",
        )
    for port in session.inputs:
        if port.name not in inputs or not port.shape or isinstance(port.shape[0], int):
            continue
        array = inputs[port.name]
        if array.ndim == 0 or len(array) < begin + batch:
            raise UsageError(
                f"The input {port.name!r} is given with {len(array) if array.ndim else 1} items, and a batch of "
                f"{batch} was asked for.",
                "Give more items, or ask for a smaller batch.",
            )
        feeds[port.name] = array[begin : begin + batch]
    for port in session.inputs:
        asked, given = (shapes or {}).get(port.name), feeds.get(port.name)
        # All of an array from which batches are taken may be meant, too.
        if asked is not None and given is not None and asked not in (given.shape, inputs[port.name].shape):
            raise UsageError(
                f"The input {port.name!r} is given as {list(given.shape)}, and --shape asks for {list(asked)}.",
                "Leave out one of the two.",
            )
    return feeds


def read_inputs(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name.

    Raises:
        DataError: If it is missing, damaged, holds nothing, or holds objects of Python.
    """
    try:
        arrays: dict[str, Array] = {}
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, NpzFile):  # and not the one array of an .npy file
            with loaded as file:
                arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or 'it is no .npz file'}.", "Check the path."
        ) from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no .npz file of arrays: {error}.", "Write it with numpy.savez.") from error
    if not arrays:
        raise DataError(f"{path} holds no named arrays.", "Write it with numpy.savez(path, INPUT=array).")
    return arrays


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
