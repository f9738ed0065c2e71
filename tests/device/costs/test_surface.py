from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.device.costs.layers import DEPTHWISE
from onnxdistill.device.costs.surface import BLOCK, Surface, axis, grouped_axis, pairs

WIDTHS = st.integers(1, 16).map(lambda blocks: blocks * BLOCK)


def test_axes() -> None:
    assert axis(3) == [3]
    assert axis(10, 8) == [10]
    assert axis(64) == [16, 32, 48, 64]
    assert axis(512) == [64, 128, 256, 384, 512]
    # Of each remainder, up to what is there now.
    assert axis(64, 8) == [8, 16, 24, 32, 48, 56, 64]
    assert axis(20, 4) == [4, 8, 12, 16, 20]


@given(most=st.integers(1, 2048), step=st.sampled_from([4, 8, 16]))
def test_an_axis_ends_at_what_is_there_and_has_every_remainder(most: int, step: int) -> None:
    points = axis(most, step)
    assert points[-1] == most
    assert points == sorted(set(points))
    assert min(points) > 0
    if most >= 2 * BLOCK:
        assert {point % BLOCK for point in points} >= {left_over % BLOCK for left_over in range(0, BLOCK, step)}


def test_measured_points_are_returned_as_they_are() -> None:
    points = {(16, 16): 1.0, (16, 32): 5.0, (32, 16): 2.0, (32, 32): 2.5}
    surface = Surface(points)
    assert {pair: surface.time_ms(*pair) for pair in points} == points


@given(
    coefficients=st.tuples(*[st.floats(0.01, 5)] * 4), inputs=WIDTHS, outputs=WIDTHS, step=st.sampled_from([4, 8, 16])
)
def test_between_points_it_is_straight(
    coefficients: tuple[float, float, float, float], inputs: int, outputs: int, step: int
) -> None:
    """A call, reading, writing, and multiplying: exact, if times are made of these."""
    one, two, three, four = coefficients

    def time_ms(ins: int, outs: int) -> float:
        return one + two * ins + three * outs + four * ins * outs

    surface = Surface({pair: time_ms(*pair) for pair in pairs(axis(256, step), axis(256, step))})
    assert surface.time_ms(inputs, outputs) == pytest.approx(time_ms(inputs, outputs), rel=1e-9)


def test_widths_are_compared_with_those_of_the_same_remainder() -> None:
    blocks = {(width, width): width / 16 for width in (16, 32, 64)}
    left_over = {(width, width): 2 * (width + 8) / 16 for width in (24, 56)}
    surface = Surface(blocks | left_over, DEPTHWISE)
    assert surface.time_ms(48, 48) == pytest.approx(3.0)
    assert surface.time_ms(40, 40) == pytest.approx(6.0)
    # What has not been measured counts as the next that has: 44 is filled up to whole blocks.
    assert surface.time_ms(44, 44) == pytest.approx(44 / 16)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_dense_layers_of_equal_remainders_are_no_depthwise_ones(step: int) -> None:
    """With fine steps each remainder is measured at one width, where fewer inputs must not look like fewer outputs."""
    surface = Surface({(one, other): 1.0 * one * other for one, other in pairs(axis(64, step), axis(64, step))})
    for inputs, outputs in ((58, 58), (60, 60), (62, 62)):
        assert surface.time_ms(inputs, outputs) > surface.time_ms(inputs, outputs - 4)
        assert surface.time_ms(inputs, outputs) == pytest.approx(inputs * outputs, rel=0.15)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("groups", [1, DEPTHWISE])
def test_where_a_remainder_was_measured_once_others_cost_as_in_whole_blocks(step: int, groups: int) -> None:
    """Whole blocks take their multiply-adds, and what leaves any remainder twice as long."""

    def time_ms(inputs: int, outputs: int) -> float:
        work = inputs if groups == DEPTHWISE else inputs * outputs
        return work * (2 if inputs % BLOCK else 1) * (2 if groups != DEPTHWISE and outputs % BLOCK else 1)

    widths = axis(128, step)
    points = [(one, one) for one in widths] if groups == DEPTHWISE else pairs(widths, widths)
    surface = Surface({pair: time_ms(*pair) for pair in points}, groups)
    for inputs in (10, 18, 38, 56, 90, 112, 126):
        for outputs in (inputs,) if groups == DEPTHWISE else (10, 18, 56, 64, 100):
            assert surface.time_ms(inputs, outputs) == pytest.approx(time_ms(inputs, outputs), rel=1e-9)


@pytest.mark.parametrize("most", [17, 20, 24, 31])
def test_where_there_is_but_one_whole_block_it_goes_in_proportion(most: int) -> None:
    """Nothing is known of how whole blocks grow."""
    points = {(width, width): float(width) for width in axis(most, 2)}
    surface = Surface(points, DEPTHWISE)
    for width in range(8, most + 1, 2):
        assert surface.time_ms(width, width) >= 0.5 * width


def test_other_layers_of_the_kind_take_nothing_from_what_whole_blocks_tell() -> None:
    """Beyond the rows of one layer lie whole blocks of another one, with twice the time for odd widths."""

    def time_ms(inputs: int, outputs: int) -> float:
        return inputs * outputs * (2 if inputs % BLOCK else 1) * (2 if outputs % BLOCK else 1)

    sizes = ((64, 64), (64, 256), (256, 64))
    points = {pair for one, other in sizes for pair in pairs(axis(one, 2), axis(other, 2))}
    surface = Surface({pair: time_ms(*pair) for pair in points})
    for one, other in ((250, 50), (58, 250), (202, 34), (34, 34), (250, 64)):
        assert surface.time_ms(one, other) == pytest.approx(time_ms(one, other), rel=1e-9)


@given(data=st.data())
def test_every_surface_can_be_read_everywhere(data: st.DataObject) -> None:
    width = st.integers(1, 80)
    groups = data.draw(st.sampled_from([1, DEPTHWISE, 4]))
    pair = st.tuples(width, width).map(lambda two: (two[0], two[0]) if groups == DEPTHWISE else two)
    points = data.draw(st.dictionaries(pair, st.floats(0, 9), min_size=1, max_size=12))
    asked = data.draw(pair)
    assert Surface(points, groups).time_ms(*asked) >= 0


def test_the_narrowest_of_a_wide_layer_are_not_as_slow_as_half_of_it() -> None:
    """A tenth of the channels lies below the narrowest whole blocks that were measured."""
    axes = axis(512, 2)
    surface = Surface({(one, other): float(one * other) for one, other in pairs(axes, axes)})
    assert surface.time_ms(52, 52) == pytest.approx(52 * 52)
    assert surface.time_ms(52, 512) == pytest.approx(52 * 512)
    single = Surface({(width, width): float(width) for width in axis(96, 2)}, DEPTHWISE)
    assert single.time_ms(10, 10) == pytest.approx(10)


def test_colours_take_as_many_times_as_much_for_odd_widths_as_whole_blocks() -> None:
    surface = Surface({(3, 16): 1.0, (3, 32): 2.0, (3, 64): 4.0, (3, 34): 5.0})
    assert surface.time_ms(3, 50) == pytest.approx(5.0 * 50 / 34)


def test_grouped_layers_are_measured_at_whole_channels_of_each_group() -> None:
    assert grouped_axis(168, 7) == [21, 42, 84, 126, 168]
    assert grouped_axis(64, 32) == [32, 64]
    assert grouped_axis(32, 32) == [32]

    def time_ms(inputs: int, outputs: int) -> float:
        return 1 + inputs * outputs / 7

    points = pairs(grouped_axis(168, 7), grouped_axis(168, 7))
    surface = Surface({pair: time_ms(*pair) for pair in points}, 7)
    assert surface.time_ms(112, 56) == pytest.approx(time_ms(112, 56))
    assert surface.time_ms(63, 168) == pytest.approx(time_ms(63, 168))
    assert surface.covers(112, 112, pairs(grouped_axis(112, 7), grouped_axis(112, 7)))
    assert not surface.covers(336, 336, pairs(grouped_axis(336, 7), grouped_axis(336, 7)))


def test_a_wide_layer_is_not_read_from_rows_of_a_narrow_one() -> None:
    """What was measured of another layer of the kind, whose rows end early, changes nothing between longer ones."""

    def time_ms(inputs: int, outputs: int) -> float:
        return inputs * outputs if outputs < 64 else inputs * outputs / 2  # no straight line

    wide = {pair: time_ms(*pair) for pair in pairs((16, 64), (64, 128, 256))}
    narrow = {pair: time_ms(*pair) for pair in pairs((32, 48), (16, 32))}
    for inputs in (32, 40, 48, 60):
        assert Surface({**wide, **narrow}).time_ms(inputs, 192) == pytest.approx(Surface(wide).time_ms(inputs, 192))
    # And where it is the only one there, it is read.
    assert Surface({**wide, **narrow}).time_ms(40, 24) == pytest.approx(40 * 24)


def test_what_reaches_less_far_covers_less() -> None:
    """Remainders that a narrower layer was measured with say nothing of a wider one."""
    wide, narrow = pairs(axis(64, 16), axis(64, 16)), pairs(axis(32, 4), axis(32, 4))
    surface = Surface(dict.fromkeys([*wide, *narrow], 1.0))
    assert surface.covers(32, 32, narrow)
    assert surface.covers(64, 64, wide)
    assert not surface.covers(64, 64, pairs(axis(64, 4), axis(64, 4)))


def test_colours_and_classes_stay() -> None:
    surface = Surface({(3, 16): 1.0, (3, 64): 4.0})
    assert surface.time_ms(3, 32) == pytest.approx(2.0)
    head = Surface({(16, 10): 1.0, (64, 10): 4.0})
    assert head.time_ms(32, 10) == pytest.approx(2.0)


def test_beyond_the_points_it_goes_on_and_never_falls_to_nothing() -> None:
    surface = Surface({(16, 16): 1.0, (32, 32): 4.0, (16, 32): 2.0, (32, 16): 2.0})
    assert surface.time_ms(64, 32) == pytest.approx(8.0)
    assert Surface({(32, 32): 1.0, (64, 64): 9.0}, DEPTHWISE).time_ms(16, 16) == 0.5
    assert Surface({(32, 10): 1.0}).time_ms(32, 20) == pytest.approx(2.0)
