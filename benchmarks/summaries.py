"""What every folder of benchmarks/ ends with: summary.json, one claim with its figures and whether they hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnxdistill.device.host import read_host

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Summary:
    """One claim.

    Attributes:
        claim: One sentence.
        command: Makes the results anew.
        date: Day of the measurement, UTC.
        machine: Facts of the machine.
        figures: Measured numbers; every name ends with its unit.
        holds: For every asked figure, whether the measured one meets it.
    """

    claim: str
    command: str
    date: str
    machine: dict[str, Any]
    figures: dict[str, float]
    holds: dict[str, bool]


def write_summary(
    name: str,
    claim: str,
    command: str,
    figures: dict[str, float],
    holds: dict[str, bool],
    machine: dict[str, Any],
) -> Path:
    """Writes benchmarks/NAME/summary.json; load at the time of measuring is left out of the machine's facts."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    rounded = {key: round(value, 4) for key, value in figures.items()}
    facts = {key: value for key, value in machine.items() if key != "load_average"}
    path = FOLDER / name / "summary.json"
    path.write_text(json.dumps(asdict(Summary(claim, command, date, facts, rounded, holds)), indent=1) + "\n")
    return path


def read_summaries() -> dict[str, Summary]:
    """All summaries by the name of their folder."""
    return {path.parent.name: Summary(**json.loads(path.read_text())) for path in sorted(FOLDER.glob("*/summary.json"))}


def this_machine() -> dict[str, Any]:
    """Facts of the machine that this runs on."""
    return read_host().to_json()
