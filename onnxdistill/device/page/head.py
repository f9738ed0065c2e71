"""The top of a benchmark's page: what was measured and where, the answer in a sentence, limits and doubts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from onnxdistill.device.numbertext import number, size_text
from onnxdistill.device.page.markup import counted, escape, interval, ratio
from onnxdistill.device.page.svg import shorten
from onnxdistill.device.result import BenchResult, CaseTiming
from onnxdistill.device.runtime import short_name
from onnxdistill.device.verdicts import Verdict

# Names in cards and in sentences are cut to so many letters; tables have them whole.
_CARD_LETTERS, _SENTENCE_LETTERS = 36, 44

# So many doubts are in sight at once.
_DOUBTS_SHOWN = 5


def title(result: BenchResult) -> str:
    """The names of the models."""
    models = list(dict.fromkeys(case.model for case in result.cases))
    names = list(map(_brief, models))
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more models"


def heading(result: BenchResult) -> str:
    """All of it, from the title to the doubts."""
    host = result.host
    parts = [
        f"{host.cpu}, {counted(host.usable_cpus, 'usable CPU')}",
        *([", ".join(host.int8_features)] if host.int8_features else []),
        *host.gpus,
        f"ONNX Runtime {host.onnxruntime}",
        _conditions(result),
    ]
    return "\n".join(
        part
        for part in (
            f"<header>\n<h1>{escape(title(result))}</h1>\n{_badge(result.verdicts)}"
            f'<span class="soft small">benchmark · {escape(_moment(result.measured_at))}</span>\n</header>',
            f'<p class="answer">{escape(answer(result))}</p>',
            f'<p class="soft small">{escape(" · ".join(parts))}</p>',
            _heroes(result),
            _verdicts(result.verdicts),
            _care(result.doubts()),
        )
        if part
    )


def answer(result: BenchResult) -> str:
    """What the benchmark says, in a sentence."""
    others = [case for case in result.cases if not case.is_baseline]
    if not others:
        case, median = result.cases[0], result.cases[0].latency_ms.median
        return (
            f"{_brief(case.name)} takes {number(median.value)} ms a call in the median ({number(median.low)} to "
            f"{number(median.high)}) and does {_rate(case)}."
        )
    if len({case.model for case in result.cases}) == 1 and not has_earlier_baseline(result):
        return _answer_of_settings(result)
    if len(others) == 1:
        return _comparison(others[0], result)
    baseline = "the earlier results" if has_earlier_baseline(result) else _brief(result.settings.baseline)
    if len({case.model for case in others}) == 1:
        ratios = [case.speedup.value for case in others]
        return (
            f"{_brief(others[0].model)} is {min(ratios):.2f}× to {max(ratios):.2f}× as fast as {baseline}, "
            f"in {len(others)} settings."
        )
    best = max(others, key=lambda case: case.speedup.low)
    if best.speedup.low <= 1:
        return f"None is measurably faster than {baseline}. The next: {_comparison(best, result)}"
    return f"The largest gain of {len(others)}: {_comparison(best, result)}"


def has_earlier_baseline(result: BenchResult) -> bool:
    """Whether cases are compared with a benchmark that was made before."""
    names = {case.name for case in result.cases}
    return any(case.compared_with not in names for case in result.cases)


def _answer_of_settings(result: BenchResult) -> str:
    soonest = min(result.cases, key=lambda case: case.latency_ms.median.value)
    most = max(result.cases, key=lambda case: case.throughput_per_s)
    soon = f"A call takes least with {_setting(soonest)}: {number(soonest.latency_ms.median.value)} ms in the median"
    if most is soonest:
        return f"{soon}, and that does most, too: {_rate(most)}."
    return f"{soon}. Most is done with {_setting(most)}: {_rate(most)}."


def _comparison(case: CaseTiming, result: BenchResult) -> str:
    gain, median = case.speedup, number(case.latency_ms.median.value)
    before = _compared_case(case, result)
    against = "" if before is None else f" against {number(before.latency_ms.median.value)} ms"
    item = " an item" if before is not None and before.batch != case.batch else ""
    name, other = _brief(case.name), _brief(case.compared_with)
    if gain.low <= 1 <= gain.high:
        return (
            f"{name} is not measurably faster or slower{item} than {other}: {ratio(gain)} "
            f"({gain.low:.2f} to {gain.high:.2f}), median {median} ms{against}."
        )
    return (
        f"{name} is {gain.value:.2f}× ({gain.low:.2f} to {gain.high:.2f}) as fast{item} as {other}: "
        f"median {median} ms{against}."
    )


def _brief(name: str) -> str:
    return shorten(name, _SENTENCE_LETTERS)


def _rate(case: CaseTiming) -> str:
    return f"{number(case.throughput_per_s)} items a second"


def _setting(case: CaseTiming) -> str:
    """What a case is called besides its model."""
    return case.name.removeprefix(case.model).removeprefix(", ") or case.name


def _compared_case(case: CaseTiming, result: BenchResult) -> CaseTiming | None:
    """None if it belongs to an earlier benchmark."""
    return next((one for one in result.cases if one.name == case.compared_with), None)


def _care(doubts: Sequence[str]) -> str:
    if not doubts:
        return ""
    items = [f"<li>{escape(doubt)}</li>" for doubt in doubts]
    shown, hidden = "".join(items[:_DOUBTS_SHOWN]), "".join(items[_DOUBTS_SHOWN:])
    more = f"<details><summary>more</summary><ul>{hidden}</ul></details>" if hidden else ""
    return f'<aside class="care"><b>Read these numbers with care</b><ul class="small">{shown}</ul>{more}</aside>'


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"


def _conditions(result: BenchResult) -> str:
    """What all cases have in common, and how often each was timed."""
    first = result.cases[0]
    shared = {
        short_name(first.provider): len({case.provider for case in result.cases}),
        counted(first.threads, "thread"): len({case.threads for case in result.cases}),
        f"batch {first.batch}": len({case.batch for case in result.cases}),
    }
    parts = [text for text, ways in shared.items() if ways == 1]
    calls = counted(first.latency_ms.count, "timed call")
    openings = f" in {len(first.times_ms)} openings" if len(first.times_ms) > 1 else ""
    return ", ".join([*parts, f"{calls}{' of each' if len(result.cases) > 1 else ''}{openings}"])


def _badge(verdicts: Sequence[Verdict]) -> str:
    """The worst outcome."""
    outcomes = {verdict.outcome for verdict in verdicts}
    worst = next((one for one in ("missed", "unclear", "met") if one in outcomes), None)
    many = "limits" if len(verdicts) > 1 else "limit"
    return "" if worst is None else f'<span class="badge {worst}">{many} {worst}</span>\n'


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    items = "".join(f'<li class="{verdict.outcome}">{escape(str(verdict))}</li>' for verdict in verdicts)
    return f'<ul class="verdicts small">{items}</ul>' if items else ""


def _heroes(result: BenchResult) -> str:
    """Large numbers: of the only case, or of the one that is compared, or the best of many."""
    others = [case for case in result.cases if not case.is_baseline]
    if len(others) == 1 and len(result.cases) <= 2:
        cards = _heroes_of_pair(others[0], result)
    elif len(result.cases) == 1:
        cards = _heroes_of_one(result.cases[0])
    else:
        cards = _heroes_of_many(result)
    items = "".join(
        f'<div class="hero"><b>{_with_small_unit(value)}</b><span>{text}</span></div>' for value, text in cards
    )
    return f'<div class="heroes">{items}</div>'


def _with_small_unit(value: str) -> str:
    amount, _, unit = value.partition(" ")
    return f"{amount} <small>{unit}</small>" if unit else amount


def _heroes_of_pair(case: CaseTiming, result: BenchResult) -> Iterator[tuple[str, str]]:
    """`(value, what it is)`, both HTML, as of the next two."""
    before = _compared_case(case, result)
    against = f"<br>{_name(before.name)}: " if before else ""
    yield (
        ratio(case.speedup),
        f"as fast as {_name(case.compared_with)}<br>95 % interval "
        f'<span class="nowrap">{interval(case.speedup, 2)}</span>',
    )
    yield (
        f"{number(case.latency_ms.median.value)} ms",
        f"median latency{against}{number(before.latency_ms.median.value) + ' ms' if before else ''}",
    )
    if case.latency_ms.p99 is not None:
        tail = None if before is None else before.latency_ms.p99
        yield (
            f"{number(case.latency_ms.p99.value)} ms",
            f"99th percentile{'' if tail is None else f'{against}{number(tail.value)} ms'}",
        )
    yield (
        number(case.throughput_per_s),
        f"items a second{against}{number(before.throughput_per_s) if before else ''}",
    )
    yield size_text(case.size_bytes), f"model file{against}{size_text(before.size_bytes) if before else ''}"


def _heroes_of_one(case: CaseTiming) -> Iterator[tuple[str, str]]:
    median = case.latency_ms.median
    yield (
        f"{number(median.value)} ms",
        f'median latency<br>95 % interval <span class="nowrap">{interval(median)}</span>',
    )
    if case.latency_ms.p99 is not None:
        yield f"{number(case.latency_ms.p99.value)} ms", "99th percentile"
    yield number(case.throughput_per_s), "items a second"
    yield size_text(case.size_bytes), "model file"
    if case.memory is not None:
        yield size_text(case.memory.process_bytes), "peak memory"


def _heroes_of_many(result: BenchResult) -> Iterator[tuple[str, str]]:
    cases = result.cases
    others = [case for case in cases if not case.is_baseline]
    if others and len({case.model for case in cases}) > 1:
        best = max(others, key=lambda case: case.speedup.low)
        yield ratio(best.speedup), f"the largest speed-up<br>{_name(best.name)}"
    soonest = min(cases, key=lambda case: case.latency_ms.median.value)
    yield f"{number(soonest.latency_ms.median.value)} ms", f"the lowest median<br>{_name(soonest.name)}"
    most = max(cases, key=lambda case: case.throughput_per_s)
    yield number(most.throughput_per_s), f"items a second, the most<br>{_name(most.name)}"
    if len({case.model for case in cases}) > 1:
        smallest = min(cases, key=lambda case: case.size_bytes)
        yield size_text(smallest.size_bytes), f"the smallest model file<br>{_name(smallest.model)}"


def _name(name: str) -> str:
    """As HTML, not too long for a card."""
    return escape(shorten(name, _CARD_LETTERS))
