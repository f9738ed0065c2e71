from __future__ import annotations

import pytest

from onnxdistill.device.remote.failures import explain_end, explain_killed, rebuilt
from onnxdistill.device.remote.machine import Machine
from onnxdistill.errors import FallbackError, UsageError

DEVICE = Machine("pi@device")


def test_errors_keep_their_class() -> None:
    error = rebuilt(DEVICE, "FallbackError", "It fell.", "Do.")
    assert type(error) is FallbackError
    assert (str(error), error.exit_code) == ("On pi@device: It fell. Do.", 1)
    for other in ("Path", "annotations", "os", "SystemExit"):
        assert type(rebuilt(DEVICE, other, "x.", "")) is UsageError


@pytest.mark.parametrize(
    ("code", "folder", "last_error", "message"),
    [
        (
            255,
            "",
            "ssh: Could not resolve hostname x.",
            "cannot connect to pi@device: ssh: Could not resolve hostname x.",
        ),
        (
            255,
            "",
            "",
            "ssh cannot connect to pi@device: it does not say why. Check that this works: ssh pi@device true.",
        ),
        (255, "/tmp/x", "Connection closed.", "ended without a result: Connection closed. Try again"),
        (0, "/tmp/x", "", "ended without a result, and nothing says why. Try again"),
        (126, "", "sh: 1: python3: Permission denied", "There is no Python python3 on pi@device: sh: 1: python3: Perm"),
        (3, "", "", "is no answer to a benchmark: nothing, and ended with exit code 3."),
    ],
)
def test_ends_without_a_result(code: int, folder: str, last_error: str, message: str) -> None:
    assert message in str(explain_end(DEVICE, code, folder, last_error, ""))


def test_unknown_signals_and_steering_characters() -> None:
    assert "(signal 99)" in str(explain_killed(DEVICE, 99))
    assert "answer to a benchmark: a [31mb c." in str(explain_end(DEVICE, 1, "", "a \x1b[31mb\x07\tc", ""))
