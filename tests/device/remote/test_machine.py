from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from onnxdistill.device.remote.machine import Machine, parse_target
from onnxdistill.errors import UsageError
from tests.device.remote.files import script


@pytest.mark.parametrize(
    ("text", "destination", "python"),
    [
        ("board", "board", "python3"),
        ("pi@board.local", "pi@board.local", "python3"),
        ("pi@board:/opt/my env/bin/python", "pi@board", "/opt/my env/bin/python"),
        ("pi@[2001:db8::1]", "pi@2001:db8::1", "python3"),
        ("[fe80::1%eth0]:~/venv/bin/python", "fe80::1%eth0", "~/venv/bin/python"),
        ("me@corp.com@board:python3.12", "me@corp.com@board", "python3.12"),
    ],
)
def test_targets(text: str, destination: str, python: str) -> None:
    assert parse_target(text) == Machine(destination, python)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":python3", "pi@", "@board", "board:", "-oProxyCommand=x", "pi@-oProxyCommand=x", "[-F]", "a b"),
        *("2001:db8::1", "fe80::1", "ssh://pi@board", "ssh://board:22", "$(x)", "pi;x@board", "board\n", "board:a\nb"),
        *("board/x", "[::1", "board:2222"),
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError, match=r"^The machine .* (does not read as user@host|has the number 2222)"):
        parse_target(text)


def test_the_command_survives_a_shell(tmp_path: Path) -> None:
    python = script(tmp_path / 'it\'s $(a) "python"', 'echo "$1"; printf %s "$2"')
    for shell in ("sh", "bash"):
        said = subprocess.run(
            [shell, "-c", Machine("d", str(python)).command()], capture_output=True, text=True, check=True
        )
        option, program = said.stdout.split("\n")
        assert option == "-c"
        compile(program, "program", "exec")
    assert Machine("d", "~/a b/python").command().startswith("~/'a b/python' -c ")
