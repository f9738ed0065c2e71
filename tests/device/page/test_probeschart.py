from __future__ import annotations

from onnxdistill.device.page.probeschart import probes_chart
from tests.device.page.results import a_search


def test_probes_by_hand() -> None:
    search = a_search(
        [(500.0, 2.0, False, True), (800.0, 4.5, False, False), (900.0, 99.0, True, False), (10.0, None, False, False)]
    )
    chart = probes_chart(search, "s2", width=580, height=270)
    # 0 to 1,040 requests on 520 units from 48 on; 0 to 5.4 ms on 200 units, up from 228.
    assert '<circle cx="298" cy="153.9" r="5" class="dot s2"><title>500.0 a second: 2.000 ms, held' in chart
    assert '<circle cx="448" cy="61.3" r="5" class="hollow bad-mark"><title>800.0 a second: 4.500 ms, missed' in chart
    assert '<path d="M494.0 24.0l8 8m0-8l-8 8" class="cross"><title>900.0 a second: 99.00 ms, saturated' in chart
    assert (
        '<circle cx="53" cy="28" r="5" class="hollow bad-mark"><title>10.00 a second: too few requests, missed' in chart
    )
    assert '<line x1="48" y1="79.9" x2="568" y2="79.9" class="limit"/>' in chart
