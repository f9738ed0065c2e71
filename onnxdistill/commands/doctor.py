"""`onnxdistill doctor`."""

from __future__ import annotations

import click
from rich.console import Console

from onnxdistill.device.display import show_findings
from onnxdistill.device.doctor import diagnose


@click.command("doctor")
def doctor_command() -> int:
    """Check ONNX Runtime, its providers and this machine; exit code 1 if something fails."""
    findings = diagnose()
    show_findings(findings, Console(highlight=False))
    return int(any(finding.level == "fail" for finding in findings))
