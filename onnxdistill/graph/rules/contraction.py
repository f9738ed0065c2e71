"""Rules of products of two tensors: matrix products, einsum, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from onnxdistill.graph.labels import Label, at
from onnxdistill.graph.rules.elementwise import meet
from onnxdistill.graph.rules.walk import Rule, Walk, argument, broadcast_shape, value_shape

LETTERS = "abcdefghijkl"


def matmul(walk: Walk, node: Node) -> bool:
    """A product over the last axis of one and the last but one of the other."""
    left, right = _operands(node)
    ranks = len(value_shape(left)), len(value_shape(right))
    if min(ranks) < 2:
        return False
    batch = LETTERS[: max(ranks) - 2]
    terms = (batch[len(batch) - ranks[0] + 2 :] + "mk", batch[len(batch) - ranks[1] + 2 :] + "kn")
    return walk.put(node, contract(walk, (left, right), terms, batch + "mn"))


def einsum(walk: Walk, node: Node) -> bool:
    """A product of two tensors, in letters."""
    equation: Any = node.args[0]
    operands: Any = node.args[1]
    if len(operands) != 2 or "." in equation or "->" not in equation:
        return False
    terms, result = equation.replace(" ", "").split("->")
    one, other = terms.split(",")
    if any(len(set(term)) != len(term) for term in (one, other)):
        return False
    return walk.put(node, contract(walk, tuple(operands), (one, other), result))


def attention(walk: Walk, node: Node) -> bool:
    """`softmax(q k^T / sqrt(width) + mask) v` over the last two axes.

    Where dimensions are cut from the heads, the queries are scaled so that the root of the width stays what it was.
    """
    query, key, value = node.args[:3]
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    assert isinstance(value, Node)
    mask = argument(node, 3, "attn_mask")
    if argument(node, 7, "enable_gqa", False):
        return False
    if argument(node, 6, "scale") is None:
        walk.note_scaling(node, query, None)
    batch = LETTERS[: len(value_shape(query)) - 2]
    scores = contract(walk, (query, key), (f"{batch}md", f"{batch}nd"), f"{batch}mn")
    if isinstance(mask, Node):
        rank = len(value_shape(query))
        own = walk.of(mask)
        if scores is not None and own is not None:
            walk.atoms.unite(broadcast_shape(own, rank), scores, "attention mask")
        elif scores is not None or own is not None:
            meet(walk, [mask], len(value_shape(mask)), "attention mask")
    return walk.put(node, _contract_labels(walk, (scores, walk.of(value)), (f"{batch}mn", f"{batch}nd"), f"{batch}md"))


def contract(walk: Walk, operands: tuple[Node, ...], terms: tuple[str, str], result: str) -> Label | None:
    """The label of a product of two tensors.

    Args:
        walk: The walk.
        operands: Two tensors.
        terms: A letter an axis of each.
        result: A letter an axis of the product; letters that are missing are summed over.
    """
    return _contract_labels(walk, (walk.of(operands[0]), walk.of(operands[1])), terms, result)


def _contract_labels(
    walk: Walk, labels: tuple[Label | None, Label | None], terms: tuple[str, str], result: str
) -> Label | None:
    shared = [letter for letter in terms[0] if letter in terms[1] and letter in result]
    summed = [letter for letter in terms[0] if letter in terms[1] and letter not in result]
    if walk.whole_heads:
        _keep_heads_whole(walk, labels, terms, shared)
    _meet_summed(walk, labels, terms, summed)
    parts = []
    for label, term in zip(labels, terms, strict=True):
        if label is None:
            continue
        _fix_unshared(walk, label, term, labels, terms, shared)
        varying = {term[axis] for axis in walk.atoms.varying(label)}
        if varying & set(summed):
            # Channels that are summed over end here; along what both share, all lose the same places.
            walk.atoms.regular.append(np.moveaxis(label, term.index(summed[0]), -1))
            continue
        parts.append(_in_letters(label, term, result))
    if not parts:
        return None
    if len(parts) == 2:
        one, other = parts
        shared_axes = set(walk.atoms.varying(one)) & set(walk.atoms.varying(other))
        if shared_axes or one.size == 1 or other.size == 1:
            walk.atoms.unite(one, other, "product")
        else:
            # Channels along different axes of the result: an element belongs to two, and neither can be followed.
            walk.atoms.freeze(one, "product")
            walk.atoms.freeze(other, "product")
            return None
        one, other = np.broadcast_arrays(one, other)
        return one
    return parts[0]


def _keep_heads_whole(
    walk: Walk, labels: tuple[Label | None, Label | None], terms: tuple[str, str], shared: list[str]
) -> None:
    """Ties all channels of a head, where both have heads along an axis that they share."""
    for letter in shared:
        both = [
            (label, term)
            for label, term in zip(labels, terms, strict=True)
            if label is not None and label.shape[term.index(letter)] > 1
        ]
        for label, term in both:
            axis = term.index(letter)
            for other in range(label.ndim):
                if other != axis:
                    walk.atoms.tie(label, other, "attention head")
            walk.heads.append(label)
        if len(both) == 2:
            (one, term), (other_label, other_term) = both
            walk.atoms.unite(
                _first(one, term.index(letter)), _first(other_label, other_term.index(letter)), "attention head"
            )


def _fix_unshared(
    walk: Walk,
    label: Label,
    term: str,
    labels: tuple[Label | None, Label | None],
    terms: tuple[str, str],
    shared: list[str],
) -> None:
    """Along an axis that both tensors have, channels of only one are as many as the other says."""
    for other, other_term in zip(labels, terms, strict=True):
        for letter in shared:
            if other is not label and (other is None or other.shape[other_term.index(letter)] == 1):
                walk.atoms.fixed.append((label, term.index(letter), "product with a fixed tensor"))


def _first(label: Label, axis: int) -> Label:
    rest = tuple(slice(None) if dim == axis else 0 for dim in range(label.ndim))
    result: Label = label[rest]
    return result


def _meet_summed(
    walk: Walk, labels: tuple[Label | None, Label | None], terms: tuple[str, str], summed: list[str]
) -> None:
    for letter in summed:
        sides = [
            label if label is not None and label.shape[term.index(letter)] > 1 else None
            for label, term in zip(labels, terms, strict=True)
        ]
        present = [side for side in sides if side is not None]
        if len(present) == 1:
            walk.atoms.freeze(present[0], "product with a fixed tensor")
        elif len(present) == 2:
            letters = "".join(dict.fromkeys(terms[0] + terms[1]))
            one, other = (_in_letters(side, term, letters) for side, term in zip(present, terms, strict=True))
            walk.atoms.unite(one, other, "product")


def _in_letters(label: Label, term: str, letters: str) -> Label:
    """The label with its axes in the order of `letters`; letters that it lacks have size 1, others it drops."""
    for axis in reversed(range(len(term))):
        if term[axis] not in letters:
            label = at(label, axis, 0)
    kept = [letter for letter in term if letter in letters]
    order = sorted(range(len(kept)), key=lambda position: letters.index(kept[position]))
    moved = label.transpose(order)
    present = {letter: moved.shape[place] for place, letter in enumerate(kept[position] for position in order)}
    return moved.reshape([present.get(letter, 1) for letter in letters])


def _operands(node: Node) -> tuple[Node, Node]:
    left, right = node.args[:2]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return left, right


RULES: dict[str, Rule] = {
    "matmul": matmul,
    "bmm": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
