from __future__ import annotations

import re

from onnxdistill.device.page.rooflinechart import roofline_chart
from onnxdistill.device.profiling.peaks import Bandwidth, Peaks
from tests.device.page.results import a_node


def test_the_roofline_by_hand() -> None:
    nodes = [a_node("slow", 1.0, 10_000_000), a_node("fast", 0.1, 4_000_000, moved_bytes=400_000)]
    peaks = Peaks(1, "cpu", {"float32": 400.0, "int8": 900.0}, (Bandwidth(1 << 16, 40.0), Bandwidth(1 << 26, 10.0)))
    # Rates of 10 and 40 GMAC/s at 100 and 10 for each byte; no node is int8, so that its peak is left out.
    chart = roofline_chart(nodes, peaks, width=456, height=270)
    assert "float32 peak 400 GMAC/s" in chart
    assert "int8" not in chart
    # 5 to 200 on 400 units from 44 on: log(x / 5) / log(40); 6.25 to 560 on 200 units, up from 228.
    assert '<circle cx="368.8" cy="207.1" r="11" class="disc s1"><title>slow: 10 GMAC/s, 1.000 ms</title>' in chart
    # The caches' 40 GB/s meet the peak at 10, and the memory's 10 GB/s at 40.
    assert '<line x1="119.2" y1="43" x2="444" y2="43" class="roof"/>' in chart
    assert re.search(r'<line x1="44" y1="[\d.]+" x2="119.2" y2="43" class="roof"/>', chart)
    assert re.search(r'<line x1="44" y1="[\d.]+" x2="269.5" y2="43" class="roof dashed"/>', chart)
    assert roofline_chart([a_node("view", 1.0, None)], peaks, width=456, height=270) == ""
