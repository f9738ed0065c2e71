from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.device.page.svg import (
    Axes,
    Box,
    Drawing,
    Floats,
    Scale,
    first_free,
    linear_ticks,
    log_ticks,
    shorten,
    step_path,
    text_width,
    tick_texts,
)

finite = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1, 5, [0, 0.5, 1]),
        (0.19, 0.27, 5, [0.2, 0.22, 0.24, 0.26]),
        (-3, 7, 6, [-2, 0, 2, 4, 6]),
        (0, 1200, 8, [0, 200, 400, 600, 800, 1000, 1200]),
        (0.1, 0.3, 3, [0.1, 0.2, 0.3]),
    ],
)
def test_ticks_of_a_linear_scale(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert linear_ticks(low, high, most) == ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (1, 10, 9, [1, 2, 3, 5, 7, 10]),
        (0.2, 6, 9, [0.2, 0.3, 0.5, 0.7, 1, 2, 3, 5]),
        (0.2, 6, 5, [0.2, 0.5, 1, 2, 5]),
        (0.5, 200, 6, [1, 3, 10, 30, 100]),
        (0.5, 200, 4, [1, 10, 100]),
        (1e-3, 1e5, 5, [1e-3, 1e-1, 1e1, 1e3, 1e5]),
        (4.1, 4.9, 5, []),
    ],
)
def test_ticks_of_a_logarithmic_scale(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert log_ticks(low, high, most) == ticks


def test_a_narrow_logarithmic_scale_has_the_ticks_of_a_linear_one() -> None:
    assert Scale(4.1, 4.9, 0, 100, logarithmic=True).ticks(5) == [4.2, 4.4, 4.6, 4.8]


@given(finite, st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_lie_in_the_range_and_are_few_but_not_too_few(low: float, span: float, most: int) -> None:
    if low + span <= low:
        return
    ticks = linear_ticks(low, low + span, most)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert most / 2.5 - 1 <= len(ticks) <= most
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


def test_texts_of_ticks() -> None:
    assert tick_texts([0, 0.5, 1]) == ["0", "0.5", "1.0"]
    assert tick_texts([0.1, 0.3, 1, 3, 10]) == ["0.1", "0.3", "1", "3", "10"]
    assert tick_texts([0, 1000, 2000]) == ["0", "1,000", "2,000"]
    assert tick_texts([]) == []


def test_positions() -> None:
    linear = Scale(0, 10, 100, 0)  # upwards
    assert [linear(0), linear(2.5), linear(10)] == [100, 75, 0]
    logarithmic = Scale(1, 100, 0, 200, logarithmic=True)
    assert [logarithmic(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert logarithmic.of(np.array([1.0, 1000.0])) == pytest.approx([0, 300])


def test_steps_by_hand() -> None:
    # Values 1, 2, 2, 4 of an empirical distribution on 10 units a value, up from 100.
    path = step_path(np.array([10.0, 10, 20, 20, 40]), np.array([100.0, 75, 50, 25, 0]))
    assert path == "M10 100v-25h10v-50h20v-25"


def drawn(path: str) -> Floats:
    """Corners of a path of steps, of shape `(corners, 2)`."""
    start, steps = path.removeprefix("M").replace("h", " h").replace("v", " v").split(" ", 2)[:2], path
    x, y = float(start[0]), float(re.split("[hv]", start[1])[0])
    corners = [(x, y)]
    for way, length in re.findall(r"([hv])(-?[\d.]+)", steps):
        x, y = (x + float(length), y) if way == "h" else (x, y + float(length))
        corners.append((x, y))
    return np.array(corners)


def dense(corners: Floats) -> Floats:
    """Points along a line, a tenth of a unit apart."""
    parts = [corners[:1]]
    for begin, end in pairwise(corners):
        count = int(10 * np.abs(end - begin).max()) + 2
        parts.append(begin + np.linspace(0, 1, count)[:, None] * (end - begin))
    return np.concatenate(parts)


def distance(points: Floats, others: Floats) -> float:
    """From the point that is furthest away from all others."""
    return max(float(np.hypot(*(others - point).T).min()) for point in points)


@given(st.integers(0, 10_000), st.integers(2, 300), st.floats(1, 60))
def test_thinned_steps_are_where_the_whole_ones_are(seed: int, count: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    xs = np.sort(rng.gamma(0.5, size=count))
    xs *= width / xs[-1]
    ys = np.linspace(40, 0, count)
    whole = np.column_stack((np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]))
    line, thinned = dense(whole), dense(drawn(step_path(xs, ys, tolerance=0.5)))
    assert max(distance(line, thinned), distance(thinned, line)) < 0.5 + 0.3  # rounding, and the gaps of the points


def test_many_steps_are_thinned() -> None:
    xs = np.sort(np.random.default_rng(0).uniform(0, 400, size=100_000))
    assert len(step_path(xs, np.linspace(300, 0, 100_000))) < 8_000
    assert len(step_path(xs, np.linspace(3, 0, 100_000))) < 100  # a flat one
    assert len(step_path(xs / 100, np.linspace(300, 0, 100_000))) < 150  # a steep one


def test_names_are_cut_in_the_middle() -> None:
    assert shorten("resnet-50", 9) == "resnet-50"
    assert shorten("resnet-50-int8", 9) == "resn…int8"
    assert text_width("abcd", 10) == pytest.approx(22.4)
    assert text_width("模型", 10) == pytest.approx(20)


def test_a_drawing_is_xml_whatever_it_is_told() -> None:
    drawing = Drawing(100, 50, 'a "<plot>"')
    drawing.text(1, 2, "<b>&\x00\x1b[0m\ud800", "name", title="'\"")
    drawing.rect(Box(5, 5, 1, 9), "area", title="<")
    drawing.circle(1, 1, 2.25)
    drawing.line(0, 0.04, 1, 2)
    drawing.path("M0 0")
    svg = ElementTree.fromstring(str(drawing))
    assert svg.get("aria-label") == 'a "<plot>"'
    text, rect, circle, line, _ = svg
    assert (
        "".join(text.itertext())
        == "'\"<b>&\N{REPLACEMENT CHARACTER}" + "\N{REPLACEMENT CHARACTER}[0m\N{REPLACEMENT CHARACTER}"
    )
    assert rect.get("width") == "0"
    assert (circle.get("r"), line.get("y1")) == ("2.2", "0")


def test_axes_by_hand() -> None:
    drawing = Drawing(200, 120, "plot")
    axes = Axes(drawing, Scale(0, 2, 40, 190), Scale(0, 100, 80, 20))
    axes.draw("ms", "%", most_x=3, most_y=3)
    svg = ElementTree.fromstring(str(drawing))
    texts = {(text.text, text.get("x"), text.get("y")) for text in svg.iter("text")}
    assert {("0", "34", "84"), ("50", "34", "54"), ("100", "34", "24")} < texts
    assert {("0", "40", "97"), ("1", "115", "97"), ("2", "190", "97")} < texts
    assert {("ms", "190", "116"), ("%", "0", "8")} < texts


def test_ticks_are_left_out_where_they_would_run_into_each_other() -> None:
    drawing = Drawing(200, 120, "plot")
    Axes(drawing, Scale(0, 20_000_000, 40, 190), Scale(0, 1, 80, 20)).draw("", "", most_x=9)
    texts = [text for text in ElementTree.fromstring(str(drawing)).iter("text") if text.get("y") == "97"]
    places = [float(text.get("x", 0)) for text in texts]
    assert [text.text for text in texts] == ["0", "20,000,000"]
    assert places[1] - places[0] > text_width("20,000,000")


def test_labels_keep_out_of_the_way() -> None:
    area = Box(0, 0, 100, 100)
    curve = np.array([[50.0, 50.0]])
    outside, on_the_curve, on_a_label, free = (
        Box(90, 0, 110, 10),
        Box(45, 45, 55, 55),
        Box(0, 0, 10, 10),
        Box(70, 70, 80, 80),
    )
    label = [Box(5, 5, 20, 20)]
    assert first_free([outside, on_the_curve, on_a_label, free], area, label, [curve]) == free
    assert first_free([outside, on_the_curve, on_a_label], area, label, [curve]) is None
