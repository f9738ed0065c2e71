"""Layers and choices over several cuts, by hand."""

from __future__ import annotations

from onnxdistill.planning.decisions import Decision
from onnxdistill.stages.plan.account import LayerState, PlannedLayer, account_decisions, account_layers, done

KERNEL = "float32 3x3 on 8x8"


def test_layers_are_followed_by_their_modules() -> None:
    before = {
        "a": LayerState(KERNEL, 3, 16, 1.0, 0.9),
        "b.conv": LayerState(KERNEL, 16, 16, 2.0, 1.0),
        "b.conv2": LayerState(KERNEL, 16, 16, 2.0, None),
        "c": LayerState(KERNEL, 16, 8, None, 0.5),
    }
    last = {
        "a": LayerState(KERNEL, 3, 16, 1.0, 0.5),
        # The first cut has made it a pair.
        "b.conv.0": LayerState(KERNEL, 16, 4, 0.5, 0.25),
        "b.conv.1": LayerState(KERNEL, 4, 16, 0.5, 0.5),
        "c": LayerState(KERNEL, 16, 8, None, 0.25),
    }
    after = {
        "a": LayerState(KERNEL, 3, 8, 0.625),
        "b.conv.0": LayerState(KERNEL, 8, 4, 0.25),
        "b.conv.1": LayerState(KERNEL, 4, 16, 0.5),
        "c": LayerState(KERNEL, 16, 8, None),
    }
    assert account_layers(before, last, after) == [
        PlannedLayer("a", KERNEL, (3, 16), (3, 8), None, 1.0, 0.5, 0.625),
        PlannedLayer("b.conv", KERNEL, (16, 16), (8, 16), 4, 2.0, 0.75, 0.75),
        PlannedLayer("b.conv2", KERNEL, (16, 16), None, None, 2.0, None, None),
        PlannedLayer("c", KERNEL, (16, 8), (16, 8), None, None, 0.25, None),
    ]


def test_choices_go_from_the_first_cut_to_the_last() -> None:
    cuts = [
        [
            Decision("width", "a", 32, 24, 0.5, 32, 0.25, -0.5),
            Decision("width", "b", 32, 32, 0.0, 16, -0.5, 1.0),
            Decision("block", "c", 1, 1, 0.0, 0, -1.0, 2.0),
            Decision("block", "d", 1, 0, 0.125, 1, 1.0, -0.125),
        ],
        [
            Decision("width", "a", 24, 24, 0.0, 16, -0.125, 2.0),
            Decision("width", "b", 32, 16, 0.75, 32, 0.5, -0.75),
            Decision("block", "c", 1, 1, 0.0, 0, -0.5, 3.0),
        ],
    ]
    assert account_decisions(cuts) == [
        # Of the cut that changed it; of one that never changed, of the last.
        Decision("width", "a", 32, 24, 0.5, 32, 0.25, -0.5),
        Decision("width", "b", 32, 16, 0.75, 32, 0.5, -0.75),
        Decision("block", "c", 1, 1, 0.0, 0, -0.5, 3.0),
        Decision("block", "d", 1, 0, 0.125, 1, 1.0, -0.125),
    ]
    assert account_decisions([]) == []


def test_what_lies_in_a_block_that_went_later_is_not_told_of() -> None:
    first = [
        Decision("width", "b.conv", 32, 24, 0.5),
        Decision("pair", "b.conv2", 0, 8, 0.25),
        Decision("width", "bc", 32, 8, 0.5),
    ]
    block = Decision("block", "b", 1, 0, 0.75)
    assert account_decisions([first, [block]]) == [first[2], block]


def test_a_pair_is_followed_by_the_name_of_its_layer() -> None:
    cuts = [
        [Decision("width", "a", 32, 32, 0.0), Decision("pair", "a", 0, 16, 0.5, 0, 0.25, -0.5)],
        [
            Decision("width", "a.0", 16, 8, 0.25, 16, 0.125, -0.25),
            Decision("width", "a.1", 32, 24, 0.125, 32, 0.0625, -0.125),
        ],
    ]
    assert account_decisions(cuts) == [
        Decision("width", "a", 32, 24, 0.125, 32, 0.0625, -0.125),
        Decision("pair", "a", 0, 8, 0.75, 16, 0.125, -0.25),
    ]


def test_the_rank_of_a_pair_whose_first_layer_is_one_itself() -> None:
    cuts = [
        [Decision("pair", "a", 0, 16, 0.5)],
        [Decision("pair", "a.0", 0, 8, 0.25)],
        [Decision("width", "a.0.1", 16, 12, 0.125), Decision("width", "a.0.0", 8, 4, 0.0625)],
    ]
    assert account_decisions(cuts) == [
        Decision("pair", "a", 0, 12, 0.625),
        Decision("pair", "a.0", 0, 4, 0.3125),
    ]


def test_what_was_decided_and_not_done_is_not_told() -> None:
    decided = [
        Decision("width", "a", 32, 24, 0.5, 32, 0.25, -0.5),
        Decision("width", "b", 32, 24, 0.5, 32, 0.25, -0.5),
        Decision("width", "c", 32, 32, 0.0, 24, -0.25, 0.5),
        Decision("pair", "d", 0, 8, 0.5, 0, 0.25, -0.5),
        Decision("pair", "e", 0, 8, 0.5, 0, 0.25, -0.5),
        Decision("block", "f", 1, 0, 0.5, 1, 0.25, -0.5),
    ]
    assert done(decided, {"a": 24}, {"e": 8}) == [
        decided[0],
        Decision("width", "b", 32, 32, 0.0),
        decided[2],
        Decision("pair", "d", 0, 0, 0.0),
        decided[4],
        decided[5],
    ]


def test_a_pair_within_a_pair_has_the_rank_between_the_outer_two() -> None:
    before = {"c": LayerState(KERNEL, 64, 64, 1.0)}
    after = {
        # In any order: nodes are numbered as they were exported.
        "c.1": LayerState(KERNEL, 16, 64, 0.25),
        "c.0.1": LayerState(KERNEL, 8, 16, 0.25),
        "c.0.0": LayerState(KERNEL, 32, 8, 0.25),
    }
    layer = account_layers(before, before, after)[0]
    assert (layer.rank, layer.channels_after) == (16, (32, 64))
