"""Results of benchmarks written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxdistill.device.host import HostFacts
from onnxdistill.device.loading.search import Probe, RateSearch
from onnxdistill.device.measuring.memory import PeakMemory
from onnxdistill.device.measuring.statistics import Estimate, Series, summarize
from onnxdistill.device.profiling.peaks import Bandwidth, Peaks
from onnxdistill.device.profiling.placement import Audit, Finding
from onnxdistill.device.profiling.profiles import CaseProfile
from onnxdistill.device.profiling.roofline import NodeRow, OpProfile, OpTypeRow
from onnxdistill.device.result import BenchResult, BenchSettings, CaseTiming


def timings(median_ms: float, openings: int = 4, calls: int = 300, seed: int = 0) -> list[Series]:
    rng = np.random.default_rng(seed)
    return [median_ms * (1 + rng.gamma(2, 0.02, size=(calls // 10, 10))) for _ in range(openings)]


def a_case(name: str = "student", series: Sequence[Series] | None = None, **changes: Any) -> CaseTiming:
    series = timings(0.2) if series is None else series
    latency_ms = summarize(series, np.random.default_rng(0))
    values: dict[str, Any] = {
        "name": name,
        "model": name,
        "path": f"models/{name}.onnx",
        "size_bytes": 95_890,
        "sha256": "0f" * 32,
        "threads": 1,
        "batch": 1,
        "provider": "CPUExecutionProvider",
        "optimization_level": "all",
        "provider_options": {},
        "io_binding": False,
        "inputs": {"image": (1, 3, 32, 32)},
        "load_ms": 8.4,
        "first_run_ms": 0.5,
        "warmup_calls": 40,
        "latency_ms": latency_ms,
        "throughput_per_s": 1e3 / latency_ms.mean.value,
        "compared_with": name,
        "speedup": Estimate(1.0, 1.0, 1.0),
        "nodes_by_provider": {},
        "memory": PeakMemory(69_700_000, 57_800_000),
        "shaky": (),
        "times_ms": tuple(tuple(one.ravel().tolist()) for one in series),
    }
    return CaseTiming(**{**values, **changes})


def a_result(*cases: CaseTiming, **changes: Any) -> BenchResult:
    host = HostFacts(
        cpu="A processor",
        architecture="x86_64",
        physical_cores=2,
        logical_cpus=4,
        usable_cpus=4,
        cpu_limit=1.5,
        memory_bytes=8 * 10**9,
        os="Linux 6",
        python="3.11.7",
        onnxruntime="1.32.0",
        onnxruntime_package="onnxruntime 1.32.0",
        providers=("CPUExecutionProvider",),
        int8_features=("AVX2",),
        load_average=0.25,
    )
    settings = BenchSettings(None, 6.0, None, None, 7, cases[0].model, (10, 10))
    values: dict[str, Any] = {
        "measured_at": "2026-11-25T13:55:16+00:00",
        "settings": settings,
        "host": host,
        "cases": cases,
        "loads": (),
        "profiles": (),
        "agreements": (),
        "verdicts": (),
        "shaky": (),
    }
    return BenchResult(**{**values, **changes})


def a_pair(gain: Estimate, **changes: Any) -> BenchResult:
    teacher = a_case("teacher", timings(0.8))
    return a_result(teacher, a_case("student", compared_with="teacher", speedup=gain, **changes))


def a_search(rates: Sequence[tuple[float, float | None, bool, bool]], **changes: Any) -> RateSearch:
    """Of `(rate, latency, saturated, held)`."""
    probes = tuple(Probe(rate, ms, 500, rate / 1000, saturated, held) for rate, ms, saturated, held in rates)
    values: dict[str, Any] = {
        "percent": 99.0,
        "limit_ms": 4.0,
        "clients": 1,
        "alone_ms": 1.0,
        "capacity_per_s": 1000.0,
        "rate_per_s": max((rate for rate, _, _, held in rates if held), default=None),
        "missed_per_s": min((rate for rate, _, _, held in rates if not held), default=None),
        "resolved": True,
        "probes": probes,
    }
    return RateSearch(**{**values, **changes})


def a_node(name: str, time_ms: float, macs: int | None = 2_000_000, **changes: Any) -> NodeRow:
    rate = None if macs is None else macs / time_ms / 1e6
    values: dict[str, Any] = {
        "name": name,
        "op_type": "Conv",
        "provider": "CPUExecutionProvider",
        "precision": "float32",
        "time_ms": time_ms,
        "share": time_ms,
        "macs": macs,
        "moved_bytes": 100_000,
        "gmacs_per_s": rate,
        "share_of_peak": None if rate is None else rate / 50,
        "bound": "compute",
    }
    return NodeRow(**{**values, **changes})


def a_profile(*nodes: NodeRow, case: str = "student", **changes: Any) -> CaseProfile:
    row = OpTypeRow("Conv", 2, 0.15, 0.75, 115_605_504, 200_000, 26.7, 0.53, "compute")
    peaks = Peaks(1, "CPUExecutionProvider", {"float32": 50.0}, (Bandwidth(1 << 16, 40.0), Bandwidth(1 << 26, 10.0)))
    finding = Finding("float islands", "3 nodes <compute> in float.", "Use GlobalAveragePool.", ("n",), 0.01, 0.041)
    audit = Audit("m.onnx", "CPUExecutionProvider", {"CPUExecutionProvider": 3}, True, 2, 1, 1, 2, (), (finding,))
    profile = OpProfile("m.onnx", 0.21, 0.2, 0.05, peaks, nodes, (row,), ("The profiler took half of it.",))
    return CaseProfile(case, audit, replace(profile, **changes))
