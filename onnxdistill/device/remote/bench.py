"""`bench` on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxdistill.device.bench import OnProgress
from onnxdistill.device.remote.errand import run_remotely
from onnxdistill.device.result import BenchResult
from onnxdistill.device.verdicts import parse_slo


def remote_bench(
    target: str,
    models: Mapping[str, Path],
    options: Mapping[str, Any],
    on_progress: OnProgress | None = None,
    *,
    ssh: Sequence[str] | None = None,
) -> BenchResult:
    """Runs `bench` on another machine; see there for the options, and `run_remotely` for the rest.

    Returns:
        What was measured there, with the facts of that machine and the paths of this one.
    """

    def read(data: Mapping[str, Any]) -> BenchResult:
        result = BenchResult.from_json(data)
        return replace(result, cases=tuple(replace(case, path=str(models[case.model])) for case in result.cases))

    if isinstance(slo := options.get("slo"), str):
        options = {**options, "slo": parse_slo(slo)}
    return run_remotely(target, "bench", models, options, read, on_progress, ssh=ssh)
