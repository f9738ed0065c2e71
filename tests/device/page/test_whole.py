from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.loading.closedloop import closed_loop
from onnxdistill.device.loading.openloop import open_loop
from onnxdistill.device.loading.search import RateSearch
from onnxdistill.device.loading.traffic import CaseLoad
from onnxdistill.device.measuring.agreement import Agreement
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.page.grids import grids_section
from onnxdistill.device.page.head import answer
from onnxdistill.device.page.load import loads_section, search_text
from onnxdistill.device.page.markup import interval, number
from onnxdistill.device.page.profile import profiles_section
from onnxdistill.device.page.rooflinechart import ROOFLINE_NODES
from onnxdistill.device.page.style import HUES, STYLE
from onnxdistill.device.page.whole import render_bench_page
from onnxdistill.device.result import CaseTiming
from onnxdistill.device.verdicts import Slo, Verdict
from tests.device.conftest import MakeModel
from tests.device.page.results import a_case, a_node, a_pair, a_profile, a_result, a_search, timings

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NASTY = "<script>alert('x')</script>\" onload=\"x\x00\x1b\ud800\u202e&amp;"


class Page(HTMLParser):
    """What is on a page; fails if its elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def headings(self) -> list[str]:
        known = ("Cases", "Distributions", "Grids", "Agreement of outputs", "Under load", "Where the time goes")
        return [name for name in known if name in self.texts]


class VirtualTime:
    """A clock that only waiting and the timed function move."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, moment_ns: int) -> None:
        self.now_ns = max(self.now_ns, moment_ns)

    def run(self) -> None:
        self.now_ns += 1_000_000


def test_the_page_of_a_real_benchmark(make_model: MakeModel) -> None:
    models = {"small": make_model("small.onnx"), NASTY: make_model("other.onnx")}
    result = bench(models, runs=30, check_outputs=True, profile=True, slo=Slo(50.0, 1e4))
    page = Page(render_bench_page(result))
    assert page.headings() == ["Cases", "Distributions", "Agreement of outputs", "Where the time goes"]
    assert "limits met" in page.text
    for case in result.cases:
        assert case.sha256 in page.text
        assert f"{number(case.latency_ms.median.value)} {interval(case.latency_ms.median)}" in page.text


def test_one_case_is_a_whole_page() -> None:
    page = Page(render_bench_page(a_result(a_case())))
    assert page.headings() == ["Cases", "Distributions"]
    for part in (
        "2026-11-25 13:55 UTC",
        "A processor, 4 usable CPUs · AVX2 · ONNX Runtime 1.32.0 · cpu, 1 thread, batch 1, 1,200 timed calls",
        "2 cores, 4 logical, 4 usable, limited to 1.5",
        "6 s for all cases",
        "40 calls, until the time was steady",
        "image [1, 3, 32, 32]",
        "onnxruntime 1.32.0",
        "models/student.onnx",
        "0f" * 32,
        "69.7 MB +11.9 MB",
        "95.9 kB",
    ):
        assert part in page.text
    assert "speed-up" not in page.text


def test_every_number_of_every_case_is_there() -> None:
    gain = Estimate(3.91, 3.86, 3.97)
    few = a_case("few", timings(5.0, openings=1, calls=10), memory=None, load_ms=1234.0)
    result = a_pair(gain)
    page = Page(render_bench_page(replace(result, cases=(*result.cases, few))))
    for case in result.cases:
        latency_ms = case.latency_ms
        for estimate in (latency_ms.median, latency_ms.p90, latency_ms.p95, latency_ms.p99, latency_ms.p999):
            assert estimate is not None
            figures = [number(value) for value in (estimate.value, estimate.low, estimate.high)]
            assert f"{figures[0]} {figures[1]}–{figures[2]}" in page.text
        assert f"{case.throughput_per_s:,.0f}" in page.text
    assert "3.91× 3.86–3.97" in page.text
    assert "– – –" in page.text  # p95, p99 and p99.9 of ten calls
    assert "1,234" in page.text


def test_names_are_only_text() -> None:
    nasty = a_case(NASTY, compared_with="teacher", speedup=Estimate(2.0, 1.9, 2.1), shaky=(f"Doubt {NASTY}.",))
    result = a_result(
        a_case("teacher"),
        nasty,
        agreements=(Agreement(NASTY, "teacher", NASTY, 64, float("inf"), 0.25, None),),
        verdicts=(Verdict(NASTY, f"p99 {NASTY}", Estimate(1.0, 0.9, 1.1), "ms", 1.0, "unclear"),),
        loads=(CaseLoad(NASTY, a_search([(500.0, 2.0, False, True)])),),
        profiles=(a_profile(a_node(NASTY, 0.1), case=NASTY),),
        shaky=(NASTY,),
    )
    html = render_bench_page(result)
    page = Page(html)
    html.encode("utf-8")
    assert "script" not in page.seen
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert re.search("[\x00-\x08\x1b\ud800\u202e]", html) is None
    assert "<script>alert('x')</script>\" onload=\"x\ufffd\ufffd\ufffd\ufffd&amp;" in page.text
    assert len(page.headings()) == 5


def test_nothing_comes_from_elsewhere() -> None:
    result = replace(a_pair(Estimate(3.9, 3.8, 4.0)), profiles=(a_profile(a_node("n", 0.1)),))
    html = render_bench_page(result)
    page = Page(html)
    assert re.search(r"https?:|//\w|@import|url\(", html) is None
    assert not {"link", "script", "img", "iframe", "object"} & page.seen
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}


def test_every_class_of_a_drawing_has_a_look() -> None:
    grid = [
        a_case(f"m {threads} {batch}", model="m", threads=threads, batch=batch)
        for threads in (1, 2)
        for batch in (1, 2)
    ]
    clock = VirtualTime()
    loop = open_loop(clock.run, rate_per_s=500, seconds=2, rng=np.random.default_rng(0), clock=clock, wait=clock.wait)
    search = a_search([(500.0, 2.0, False, True), (700.0, 5.0, False, False), (900.0, 90.0, True, False)])
    wide = a_case("slow", timings(20.0), shaky=("Doubt.",))
    result = a_result(
        *grid,
        wide,
        loads=(CaseLoad("m", loop), CaseLoad("m", search)),
        profiles=(a_profile(a_node("n", 0.1)),),
        verdicts=(Verdict("m", "p99", Estimate(1.0, 0.9, 1.1), "ms", 1.0, "unclear"),),
    )
    html = render_bench_page(result)
    style, _, body = html.partition("</style>")
    used = {css for value in re.findall(r'class="([^"]*)"', body) for css in value.split()}
    # What only tells where something is: nothing is to be seen of it.
    assert {css for css in used if f".{css}" not in style} == set()


def luminance(colour: str) -> float:
    """Relative, of `#rrggbb` or `#rgb`, as WCAG 2.2 defines it."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_reads_on_its_paper() -> None:
    light, dark = (dict(re.findall(r"--([\w-]+): #(\w+);", block)) for block in STYLE.split("@media")[:2])
    inks = ("ink", "soft", "good", "bad", "care", *(f"c{index}" for index in range(HUES + 1)))
    for theme in (light, dark):
        for ink in inks:
            for paper in ("paper", "card"):
                low, high = sorted((luminance(theme[ink]), luminance(theme[paper])))
                assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_size_does_not_grow_with_the_timings() -> None:
    cases = [a_case(f"model {index}", timings(0.2 * 1.1**index, 5, 2000, index)) for index in range(8)]
    clock = VirtualTime()
    loop = open_loop(clock.run, rate_per_s=800, seconds=12, rng=np.random.default_rng(0), clock=clock, wait=clock.wait)
    html = render_bench_page(a_result(*cases, loads=(CaseLoad("model 0", loop),)))
    assert len(html.encode()) < 200_000


def test_many_nodes_do_not_make_it_large() -> None:
    nodes = [a_node(f"{'block/' * 20}{index}", 0.001 + 1e-5 * index) for index in range(2000)]
    profiles = tuple(a_profile(*nodes, case=f"case {index}") for index in range(8))
    html = render_bench_page(a_result(a_case(), profiles=profiles))
    assert len(html.encode()) < 1_000_000
    assert html.count('class="disc s1"') == 2 * 8 * ROOFLINE_NODES  # drawn for wide and for narrow screens
    assert "The other 1,988 nodes" in html


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (
            Estimate(3.91, 3.86, 3.97),
            r"student is 3\.91× \(3\.86 to 3\.97\) as fast as teacher: median 0\.20\d\d ms against 0\.8\d+ ms\.",
        ),
        (Estimate(0.8, 0.79, 0.81), r"student is 0\.80× \(0\.79 to 0\.81\) as fast as teacher: "),
        (
            Estimate(1.01, 0.98, 1.03),
            r"student is not measurably faster or slower than teacher: 1\.01× \(0\.98 to 1\.03\)",
        ),
    ],
)
def test_the_answer_of_a_pair(gain: Estimate, sentence: str) -> None:
    assert re.match(sentence, answer(a_pair(gain)))


def test_the_answer_of_other_benchmarks() -> None:
    faster, slower = Estimate(2.0, 1.9, 2.1), Estimate(0.5, 0.4, 0.6)
    teacher = a_case("teacher")
    one = answer(a_result(teacher))
    assert re.match(
        r"teacher takes 0\.2\d\d\d ms a call in the median \(0\.2\d+ to 0\.2\d+\) and does 4,\d{3} items a second", one
    )
    a, b = (a_case(name, compared_with="teacher", speedup=gain) for name, gain in (("a", faster), ("b", slower)))
    assert answer(a_result(teacher, a, b)).startswith("The largest gain of 2: a is 2.00×")
    assert answer(a_result(teacher, b, replace(b, name="c", model="c"))).startswith(
        "None is measurably faster than teacher."
    )
    two = [replace(a, model="a", name=f"a, batch {batch}", speedup=gain) for batch, gain in ((1, faster), (2, slower))]
    assert answer(a_result(teacher, *two)) == "a is 0.50× to 2.00× as fast as teacher, in 2 settings."
    settings = [
        a_case("m, batch 1", model="m"),
        a_case("m, batch 8", timings(0.9), model="m", batch=8, compared_with="m, batch 1", throughput_per_s=8000.0),
    ]
    assert answer(a_result(*settings)) == (
        f"A call takes least with batch 1: {settings[0].latency_ms.median.value:.4f} ms in the median. "
        "Most is done with batch 8: 8,000 items a second."
    )
    earlier = answer(a_result(replace(a, compared_with="earlier a")))
    assert re.match(r"a is 2\.00× \(1\.90 to 2\.10\) as fast as earlier a: median 0\.2\d+ ms\.", earlier)


def test_limits_and_doubts() -> None:
    outcomes = ("met", "unclear", "missed")
    verdicts = [Verdict(f"case {one}", "p99 ≤ 2 ms", Estimate(2.0, 1.5, 2.5), "ms", 2.0, one) for one in outcomes]
    doubts = tuple(f"Doubt {index}." for index in range(8))
    html = render_bench_page(a_result(a_case(), verdicts=tuple(verdicts), shaky=doubts))
    text = Page(html).text
    assert "limits missed" in text
    assert "case unclear: p99 ≤ 2 ms: 2 ms (1.5 to 2.5), unclear" in text
    assert all(doubt in text for doubt in doubts)
    assert "limit unclear" in Page(render_bench_page(a_result(a_case(), verdicts=tuple(verdicts[1:2])))).text
    assert "with care" not in Page(render_bench_page(a_result(a_case()))).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.0000"),
        (0.123456, "0.1235"),
        (0.99994, "0.9999"),
        (0.99996, "1.000"),
        (9.9996, "10.00"),
        (99.996, "100.0"),
        (999.96, "1,000"),
        (1234567.8, "1,234,568"),
        (-12.345, "-12.35"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def grid_cases(**gains: Estimate) -> list[CaseTiming]:
    return [
        a_case(
            f"{model}, {threads}, {batch}",
            timings((2.0 if model == "teacher" else 1.0) * batch / threads),
            model=model,
            threads=threads,
            batch=batch,
            compared_with=f"teacher, {threads}, {batch}",
            speedup=gains.get(f"t{threads}b{batch}", Estimate(2.0, 1.9, 2.1)),
        )
        for model in ("teacher", "student")
        for threads in (1, 2)
        for batch in (1, 16)
    ]


def test_grids() -> None:
    gains = {"t1b1": Estimate(4.0, 3.9, 4.1), "t1b16": Estimate(1.1, 0.9, 1.3), "t2b1": Estimate(0.5, 0.4, 0.6)}
    html = grids_section(grid_cases(**gains))
    assert html.count('class="heat"') == 2 + 3  # the teacher is not compared
    medians = html[html.index("<h3>student") :]
    assert 'aria-label="median, ms by threads and batch"' in medians
    speedups = medians[medians.index("speed-up over teacher, same setting") :]
    assert '<td class="best" style="background:rgb(var(--tint-good) / 0.50)" title="3.90–4.10">4.00×</td>' in speedups
    assert '<td title="0.90–1.30">1.10×</td>' in speedups
    assert '<td style="background:rgb(var(--tint-bad) / 0.28)" title="0.40–0.60">0.50×</td>' in speedups
    fastest = grid_cases()[6].latency_ms.median.value
    assert re.search(
        rf'<td class="best" style="background:rgb\(var\(--tint\) / 0\.06\)"[^>]*>{fastest:.4f}</td>', medians
    )


def test_one_setting_and_several_models_are_a_grid_of_models() -> None:
    cases = [case for case in grid_cases() if case.threads == 1]
    html = grids_section(cases)
    assert html.count('class="heat"') == 3
    assert 'aria-label="median, ms by model and batch"' in html
    assert grids_section(cases[:2]) == ""  # one model, one setting
    assert grids_section([cases[0]]) == ""


def test_a_grid_with_holes() -> None:
    html = grids_section(grid_cases()[1:4])
    assert "<td>–</td>" in html


@pytest.mark.parametrize(
    ("search", "text"),
    [
        (
            a_search([(500.0, 2.0, False, True), (550.0, 5.0, False, False)]),
            "keeps p99 within 4 ms up to 500.0 requests a second with 1 worker, 50\u00a0% of the capacity, "
            "and missed it at 550.0.",
        ),
        (
            a_search([], alone_ms=5.0),
            "cannot keep p99 within 4 ms at any rate: that of a call alone is already 5.000 ms.",
        ),
        (
            a_search([(20.0, 5.0, False, False)], percent=50.0, clients=2, resolved=False),
            "kept median within 4 ms at no rate that was tried, with 2 workers. "
            "The time was over before the search came to its end.",
        ),
    ],
)
def test_what_a_search_came_to(search: RateSearch, text: str) -> None:
    assert search_text(search) == text


def test_loads() -> None:
    clock = VirtualTime()
    rng = np.random.default_rng(0)
    steady = open_loop(clock.run, rate_per_s=500, seconds=2, rng=rng, clock=clock, wait=clock.wait)
    overloaded = open_loop(clock.run, rate_per_s=1500, seconds=1, rng=rng, clock=clock, wait=clock.wait)
    closed = closed_loop(clock.run, clients=1, seconds=1.5, clock=clock)
    loads = [CaseLoad("m", result) for result in (steady, overloaded, closed, a_search([(500.0, 2.0, False, True)]))]
    page = Page(loads_section(loads, {"m": "s3"}))
    assert re.search(rf"m 500 {number(steady.achieved_per_s)} 1\.[\d.–∞\s]+ \d+ % 1 steady", page.text)
    assert re.search(r"m 1,500 [\d,]+ \d[\d.,–∞\s]+ 150 % 1 saturated", page.text)
    assert "m 1 1,000 1.000 1.000–1.000" in page.text
    assert "keeps p99 within 4 ms up to 500.0 requests a second" in page.text
    assert ("class", "curve s3") in page.attributes
    assert loads_section([], {}) == ""
    assert "Back to back" not in loads_section(loads[:1], {})


def test_profiles() -> None:
    nodes = [a_node(f"node {index}", 0.01 * (20 - index)) for index in range(20)]
    page = Page(profiles_section([a_profile(*nodes, a_node("view", 0.3, None))]))
    for part in (
        "The optimized graph has 3 nodes on cpu. 1 of 2 convolutions and matrix products compute in 8-bit integers.",
        "float islands 3 nodes <compute> in float. Use GlobalAveragePool. 4.1 %",
        "The profiler took half of it.",
        "One run takes 0.2100 ms",
        "Conv 2 0.1500 75.0 % 116 M 26.7 53 % compute",
        "outside the nodes 0.0500 25.0 %",
        "1 view Conv float32 0.3000 30.0 % – – – compute",
        "2 node 0 Conv float32 0.2000 20.0 % 2 M 10 20 % compute",
        "The other 9 nodes take 0.4500 ms.",
    ):
        assert part in page.text
    assert profiles_section([]) == ""
    assert Page(profiles_section([a_profile()] * 3)).seen >= {"details"}


def test_agreements() -> None:
    agreements = (
        Agreement("student", "teacher", "logits", 64, 6.29, 0.658, 71.875),
        Agreement("student", "teacher", "n", 1, 0.0, 0.0, None),
    )
    page = Page(render_bench_page(replace(a_pair(Estimate(2.0, 1.9, 2.1)), agreements=agreements)))
    assert "student logits 64 6.29 65.8 % 71.88 %" in page.text
    assert "student n 1 0 0 % –" in page.text
