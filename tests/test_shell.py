"""What is around a run: what it says where it ends on the way."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rich.console import Console

from onnxdistill.errors import LimitsMissedError, UsageError
from onnxdistill.shell import opened

KEYS = "bench.batch or distill.micro_batch"


def ended(target: Path, work: Callable[[], object], kind: type[Exception]) -> tuple[Exception, str]:
    """The error that a run with a checkpoint ends with, and what the console shows."""
    file = io.StringIO()

    def run() -> None:
        with opened("a", (), target, Console(file=file, width=120), None, memory_keys=KEYS) as shell, shell.running():
            checkpoint = shell.journal.checkpoint("distill")
            assert checkpoint is not None
            checkpoint.write_text("state")
            work()

    with pytest.raises(kind) as caught:
        run()
    return caught.value, file.getvalue()


def missed() -> None:
    raise LimitsMissedError("3 x is the most.")


def broken() -> None:
    raise RuntimeError("a tensor of another shape")


def test_memory_that_torch_does_not_get_is_explained(tmp_path: Path) -> None:
    error, shown = ended(tmp_path / "run", lambda: torch.empty(2**55), UsageError)
    wanted = f"The memory of this machine does not suffice: you tried to allocate {2**57} bytes."
    assert str(error) == f"{wanted} Set a smaller {KEYS}, or close other programs."
    assert "The same command goes on from here." in shown


def told_otherwise() -> None:
    """As a network of the user's own may."""
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("The images are too large.") from error


def test_a_lack_of_memory_in_other_words_is_explained_too(tmp_path: Path) -> None:
    error, shown = ended(tmp_path / "run", told_otherwise, UsageError)
    assert str(error).startswith("The memory of this machine does not suffice.")
    assert "The same command goes on from here." in shown


def test_what_was_trained_for_limits_that_are_out_of_reach_is_kept(tmp_path: Path) -> None:
    _, shown = ended(tmp_path / "run", missed, LimitsMissedError)
    assert "What was trained is kept for another try with the same --out." in shown


def test_errors_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    error, shown = ended(tmp_path / "run", broken, RuntimeError)
    assert type(error) is RuntimeError
    assert shown == ""


def test_a_full_disk_under_the_console_is_not_one_of_the_scratch_folder(tmp_path: Path) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails as well

    def run() -> None:
        with opened("a", (), tmp_path / "run", Console(file=full), None, memory_keys=KEYS) as shell:
            assert shell.console is not None
            shell.console.print("x")

    with pytest.raises(OSError, match="No space left") as caught:
        run()
    assert caught.value.filename is None
    with suppress(OSError):
        full.close()
