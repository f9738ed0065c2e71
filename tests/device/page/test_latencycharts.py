from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest

from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.page.latencycharts import Curve, common_span, ecdf_chart, ecdf_points, median_mark, time_panel
from tests.device.page.results import timings


def test_points_of_a_distribution_by_hand() -> None:
    values, shares = ecdf_points(np.array([4.0, 1.0, 2.0, 2.0]))
    assert values.tolist() == [1, 1, 2, 2, 4]
    assert shares.tolist() == [0, 25, 50, 75, 100]


def test_a_distribution_by_hand() -> None:
    # From 1 ms to the 99th percentile, 3.97 ms, on 400 units; 272 units for 100 %.
    chart = ecdf_chart([Curve("m", np.array([4.0, 1.0, 2.0, 3.0]), "s1")], "ms", "%", width=452, height=342)
    assert '<path d="M40 300v-68h134.7v-68h134.7v-68h130.6" class="curve s1">' in chart
    assert ">m</text>" in chart


def test_distributions_far_apart_are_on_a_logarithmic_scale() -> None:
    near, far = (
        ecdf_chart([Curve("a", np.array([1.0, high]), "s1")], "", "", width=900, height=300) for high in (4.0, 100.0)
    )
    assert ">3.0<" in near
    assert ">3<" in far


@pytest.mark.parametrize("names", [["teacher", "student"], [f"model {index}" for index in range(30)], ["x" * 100]])
def test_every_curve_can_be_told(names: list[str]) -> None:
    # All at the same place, which is the hardest.
    values = timings(1.0)[0].ravel()
    chart = ecdf_chart([Curve(name, values, "s1") for name in names], "ms", "%", width=350, height=280)
    labels = re.findall(r'class="(?:name|middle badge-text) s1">(?:<title>[^<]*</title>)?([^<]*)<', chart)
    assert labels == (names if len(names) == 2 else [str(index + 1) for index in range(len(names))])
    assert len(names) == 2 or all(name in unescape(chart.partition('class="key"')[2]) for name in names)


def test_a_panel_over_time() -> None:
    few = [np.array([1.0, 1.0, 3.0]), np.array([1.2, 1.2, 1.2])]
    assert common_span([few]) == pytest.approx((1 / 1.2, 2.0))  # at most twice the median, which is 1.2 ms
    panel = time_panel("m", few, "s1", (0.5, 1.5), width=344)
    assert panel.count('class="dot faint s1"') == 6
    # 0.6 to 1.8 ms on 112 units, up from 118.
    heights = [float(y) for y in re.findall(r'<path d="M[\d.]+ ([\d.]+)L[\d.]+ [\d.]+" class="curve s1">', panel)]
    assert heights == pytest.approx([118 - 112 / 3, 118 - 112 / 2], abs=0.06)
    many = time_panel("m", [one.ravel() for one in timings(1.0, 3, 3000)], "s1", (0.9, 1.05), width=344)
    assert many.count('class="band s1"') == 3
    assert "v4" in many  # calls above it
    assert len(many) < 12_000


def test_medians_are_bars_or_dots() -> None:
    bar = median_mark(Estimate(1.0, 0.9, 1.1), highest=1.1, lowest=0.5, css="s1")
    assert 'class="area s1"' in bar
    assert 'x="1" y="3" width="94.5"' in bar  # of 104 units for 1.1 ms
    dot = median_mark(Estimate(1.0, 0.01, 1.1), highest=90.0, lowest=0.5, css="s1")
    assert 'class="dot s1"' in dot
    assert '<line x1="1" y1="8"' in dot  # an interval that begins further left
