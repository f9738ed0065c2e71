"""Rules of operators that move, cut and join axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from onnxdistill.graph.labels import CONSTANT, Label, at
from onnxdistill.graph.rules.elementwise import meet
from onnxdistill.graph.rules.walk import (
    CodeSize,
    Walk,
    argument,
    broadcast_shape,
    full_along,
    integers,
    module_of,
    operator_name,
    source_of,
    value_shape,
)

RESHAPES = frozenset("view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as".split())


def reshape(walk: Walk, node: Node) -> bool:
    """Channels go wherever their elements go; where one axis becomes several, these have to stay regular."""
    source = source_of(node)
    label = walk.of(source)
    if label is None:
        return walk.put(node, None)
    result = reshaped(walk, label, value_shape(source), value_shape(node))
    if result is None:
        return False
    walk.put(node, result)
    walk.note_size(node)
    return True


def reshaped(walk: Walk, label: Label, before: tuple[int, ...], after: tuple[int, ...]) -> Label | None:
    """The label of a reshape from one shape to another; None if their axes do not line up."""
    parts: list[int] = []  # the shape of the label in the finest common factors
    merged: list[list[int]] = []  # for every axis of the result, its factors
    full: list[int] = []  # the sizes of the factors
    split = False
    for left, right in reshape_blocks(before, after):
        if all(label.shape[axis] == 1 for axis in left):
            merged += [[] for _ in right]
            continue
        sizes, targets = [before[axis] for axis in left], [after[axis] for axis in right]
        factors = common_factors(sizes, targets)
        if factors is None:
            return None
        for axis in left:
            own = _taken(factors, sizes, left.index(axis))
            split |= label.shape[axis] > 1 and len(own) > 1
            parts += own if label.shape[axis] > 1 else [1] * len(own)
        first = len(full)
        full += factors
        for position in range(len(right)):
            start = len(_flat(factors, targets, position))
            merged.append([first + start + k for k in range(len(_taken(factors, targets, position)))])
    fine = label.reshape(parts)
    if split:
        walk.atoms.regular.append(fine)
    for axes in merged:
        if any(fine.shape[axis] > 1 for axis in axes):
            for axis in axes:
                fine = full_along(fine, axis, full[axis])
    return fine.reshape([int(np.prod([fine.shape[axis] for axis in axes], initial=1)) for axes in merged])


def _taken(factors: list[int], sizes: list[int], position: int) -> list[int]:
    """Of the factors, those whose product is the size at a position."""
    start = len(_flat(factors, sizes, position))
    taken: list[int] = []
    while int(np.prod(taken, initial=1)) < sizes[position]:
        taken.append(factors[start + len(taken)])
    return taken


def _flat(factors: list[int], sizes: list[int], position: int) -> list[int]:
    """The factors that belong to the sizes before a position."""
    before = int(np.prod(sizes[:position], initial=1))
    count = 0
    while int(np.prod(factors[:count], initial=1)) < before:
        count += 1
    return factors[:count]


def common_factors(one: list[int], other: list[int]) -> list[int] | None:
    """The finest factors, none of them 1, that both lists of sizes are runs of; None if there are none.

    `[3, 4]` and `[6, 2]` have `[3, 2, 2]`; `[4, 6]` and `[3, 8]` have none.
    """
    bounds = sorted({int(bound) for sizes in (one, other) for bound in np.cumprod(sizes)} - {1})
    factors: list[int] = []
    last = 1
    for bound in bounds:
        if bound % last:
            return None
        factors.append(bound // last)
        last = bound
    return factors


def reshape_blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest runs of dimensions with equal products.

    `(2, 3, 4, 4)` to `(2, 48)` is `[([0], [0]), ([1, 2, 3], [1])]`.
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        sizes = [before[dim] for dim in left], [after[dim] for dim in right]
        while np.prod(sizes[0]) != np.prod(sizes[1]):
            if np.prod(sizes[0]) < np.prod(sizes[1]):
                left.append(i)
                sizes[0].append(before[i])
                i += 1
            else:
                right.append(j)
                sizes[1].append(after[j])
                j += 1
        blocks.append((left, right))
    return blocks


def permute(walk: Walk, node: Node) -> bool:
    """Axes in another order."""
    label = walk.of(source_of(node))
    return walk.put(node, None if label is None else label.transpose(integers(node.args[1])))


def transpose(walk: Walk, node: Node) -> bool:
    """Two axes change places."""
    label = walk.of(source_of(node))
    if label is None:
        return walk.put(node, None)
    one, other = integers([argument(node, 1, "dim0", 0), argument(node, 2, "dim1", 1)])
    return walk.put(node, label.swapaxes(one, other))


def expand(walk: Walk, node: Node) -> bool:
    """Axes of size 1 are repeated; along those the result is the same all along."""
    source = source_of(node)
    shape, own = value_shape(node), value_shape(source)
    missing = len(shape) - len(own)
    walk.uniform[node] = {
        axis for axis in range(len(shape)) if axis < missing or (own[axis - missing] == 1 and shape[axis] > 1)
    }
    label = walk.of(source)
    return walk.put(node, None if label is None else broadcast_shape(label, len(shape)))


def concatenate(walk: Walk, node: Node) -> bool:
    """Channels of one after those of the other; along all other axes they meet."""
    values: Any = node.args[0]
    rank = len(value_shape(node))
    axis = integers(argument(node, 1, "dim", 0))[0] % rank
    labels = [walk.of(value) for value in values]
    if all(label is None for label in labels):
        return walk.put(node, None)
    sizes = [value_shape(value)[axis] for value in values]
    if not any(label is not None and label.shape[axis] > 1 for label in labels):
        walk.put(node, meet(walk, list(values), rank, "cat"))
        return True
    parts = []
    for label, size in zip(labels, sizes, strict=True):
        parts.append(np.full((1,) * rank, CONSTANT, dtype=np.int64) if label is None else label)
        parts[-1] = full_along(parts[-1], axis, size)
    common = np.broadcast_shapes(*[[1 if dim == axis else n for dim, n in enumerate(p.shape)] for p in parts])
    spread = [np.broadcast_to(part, [part.shape[axis] if d == axis else n for d, n in enumerate(common)])
              for part in parts]  # fmt: skip
    return walk.put(node, np.concatenate(spread, axis))


def pad(walk: Walk, node: Node) -> bool:
    """What is added along a channel axis are channels, too, which go with those that they meet later."""
    label = walk.of(source_of(node))
    if label is None:
        return walk.put(node, None)
    amounts = integers(node.args[1])
    for dim in range(len(amounts) // 2):
        axis = label.ndim - 1 - dim
        before, after = amounts[2 * dim : 2 * dim + 2]
        if label.shape[axis] == 1 or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            return False
        label = _padded(walk, node, label, axis, (before, after))
    return walk.put(node, label)


def _padded(walk: Walk, node: Node, label: Label, axis: int, amounts: tuple[int, int]) -> Label:
    shape = [1 if other == axis else size for other, size in enumerate(label.shape)]
    parts = []
    for side, amount in zip(("before", "after"), amounts, strict=True):
        shape[axis] = amount
        part = walk.atoms.new(*shape)
        parts.append(part)
        if amount:
            walk.code_sizes.append(CodeSize(f"{node.name} {side}", module_of(node), part, tuple(shape)))
    if amounts[0] == amounts[1]:
        # As many on either side: the code may name the amount once.
        walk.atoms.unite(parts[0], parts[1], "pad")
    return np.concatenate([parts[0], label, parts[1]], axis)


def take_slice(walk: Walk, node: Node) -> bool:
    """A part of an axis; a cut through channels has to leave parts of equal size on both sides."""
    source = source_of(node)
    label = walk.of(source)
    if label is None:
        return walk.put(node, None)
    axis = integers(argument(node, 1, "dim", 0))[0] % label.ndim
    size = value_shape(source)[axis]
    if label.shape[axis] == 1:
        return walk.put(node, label)
    start, stop, step = slice(
        argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    ).indices(size)
    part = label.take(range(start, stop, step), axis)
    if part.shape[axis] == size:
        return walk.put(node, label)
    length = stop - start
    if step != 1 or length <= 0 or size % length or start % length:
        return False
    _keep_parts_equal(walk, label, axis, size // length)
    walk.put(node, part)
    walk.note_size(node)
    return True


def _keep_parts_equal(walk: Walk, label: Label, axis: int, parts: int) -> None:
    shape = list(label.shape)
    shape[axis : axis + 1] = [parts, label.shape[axis] // parts]
    walk.atoms.regular.append(label.reshape(shape))


def chunk(walk: Walk, node: Node) -> bool:
    """Equal parts of an axis: `chunk`, and `split` where it comes to that."""
    source = source_of(node)
    label = walk.of(source)
    results: list[Any] = list(node.meta["val"])
    axis = integers(argument(node, 2, "dim", 0))[0] % len(results[0].shape)
    sizes = [int(result.shape[axis]) for result in results]
    if label is None or label.shape[axis] == 1:
        walk.several[node] = [label] * len(results)
        return True
    if len(set(sizes)) > 1:
        return False
    _keep_parts_equal(walk, label, axis, len(sizes))
    walk.several[node] = list(np.split(label, len(sizes), axis))
    return True


def unbind(walk: Walk, node: Node) -> bool:
    """Every index of an axis by itself."""
    source = source_of(node)
    label = walk.of(source)
    count = len(node.meta["val"])
    axis = integers(argument(node, 1, "dim", 0))[0]
    walk.several[node] = [_selected(walk, label, axis, index) for index in range(count)]
    return True


def select(walk: Walk, node: Node) -> bool:
    """One index of an axis."""
    axis, index = integers([argument(node, 1, "dim"), argument(node, 2, "index")])
    return walk.put(node, _selected(walk, walk.of(source_of(node)), axis, index))


def _selected(walk: Walk, label: Label | None, axis: int, index: int) -> Label | None:
    if label is None:
        return None
    if label.shape[axis] > 1 and walk.atoms.varying(label) == [axis % label.ndim]:
        walk.atoms.freeze(label, "select")  # a place that is written into the code
        return None
    return at(label, axis, index if label.shape[axis] > 1 else 0)


def index(walk: Walk, node: Node) -> bool:
    """Rows in the order of a constant index, such as a table of relative positions."""
    label = walk.of(source_of(node))
    if label is None:
        return walk.put(node, None)
    places: Any = node.args[1]
    (axis, place), *more = [(axis, value) for axis, value in enumerate(places) if value is not None]
    rows = walk.constant(place)
    if more or rows is None:
        return False
    if label.shape[axis] > 1:
        label = label.take(rows.numpy().reshape(-1), axis)
    shape = [*label.shape[:axis], *rows.shape, *label.shape[axis + 1 :]]
    if label.shape[axis] == 1:
        shape[axis : axis + rows.ndim] = [1] * rows.ndim
    return walk.put(node, label.reshape(shape))


def roll(walk: Walk, node: Node) -> bool:
    """A roll or a flip of axes without channels."""
    label = walk.of(source_of(node))
    axes = integers(argument(node, 2, "dims", []) if operator_name(node) == "roll" else node.args[-1])
    if label is not None and not axes and label.size > 1:
        return False  # all elements in a row
    if label is not None and any(label.shape[axis] > 1 for axis in axes):
        return False
    return walk.put(node, label)


def pixel_shuffle(walk: Walk, node: Node) -> bool:
    """Every channel that comes out is `factor^2` neighbours of those that go in."""
    source = source_of(node)
    factor = integers(node.args[1])[0]
    channels = walk.along(source, 1, "pixel_shuffle")
    if channels is None:
        return walk.put(node, None)
    rows = channels.reshape(-1, factor**2)
    walk.atoms.unite(rows, rows[:, :1], "pixel_shuffle")
    return walk.put_along(node, 1, rows[:, 0])
