"""What `bench` refuses, as a command: one paragraph, exit code 2, and nothing of the user's is touched."""

from __future__ import annotations

import errno
import json
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.jsonfile import check_place, write_json
from onnxdistill.device.session import SessionSettings, most_threads, open_session
from onnxdistill.errors import OutputError, UsageError
from tests.compress.commands import run_here
from tests.device.commands import run


def test_more_threads_than_make_sense() -> None:
    with pytest.raises(UsageError, match=rf"100000 threads were asked for.* at most {most_threads()}"):
        SessionSettings(threads=100_000)
    SessionSettings(threads=most_threads())
    assert most_threads() >= 64


def test_a_negative_seed(make_model) -> None:
    with pytest.raises(UsageError, match="from 0 on, and -1 was given"):
        bench([make_model()], seed=-1)


@pytest.mark.parametrize("batch", [10**9, 10**30])
def test_a_batch_beyond_the_memory(make_model, batch: int) -> None:
    session = open_session(make_model())
    with pytest.raises(UsageError, match=r"the input 'x' as \[10+, 3, 8, 8\] takes [\d,.]+ GB"):
        random_feeds(session, batch, {}, np.random.default_rng(0))


def test_a_shape_beyond_the_memory(make_model) -> None:
    session = open_session(make_model(shape=("batch", 3, "height", "width")))
    with pytest.raises(UsageError, match=r"takes 120,000\.0 GB"):
        random_feeds(session, 1, {"x": (1, 3, 10**5, 10**8)}, np.random.default_rng(0))


@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hardlink"])
def test_json_does_not_replace_a_model(
    make_model, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    content = model.read_bytes()
    place = tmp_path / "other"
    match how:
        case "same":
            place = model
        case "relative":
            place = tmp_path / "folder" / ".." / model.name
            (tmp_path / "folder").mkdir()
        case "symlink":
            place.symlink_to(model)
        case "hardlink":
            place.hardlink_to(model)
    done = run_here(monkeypatch, capsys, "bench", model, "--runs", 5, "--json", place)
    assert done.returncode == 2
    assert "is to be read" in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert model.read_bytes() == content


def test_json_into_a_pipe_arrives_there(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_place(pipe)
    write_json(pipe, {"a": [1, 2]})
    reader.join()
    assert read == ['{\n  "a": [1, 2]\n}\n']
    assert pipe.is_fifo()


def test_json_into_a_device() -> None:
    write_json(Path(os.devnull), {"a": 1})
    assert Path(os.devnull).is_char_device()
    with pytest.raises(OutputError, match=r"/dev/full cannot be written: No space left on device\. Free space"):
        write_json(Path("/dev/full"), {"a": 1})


def test_json_into_a_file_that_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a container, by itself: nothing can take its name."""

    def busy(_self: Path, _target: Path) -> Path:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(Path, "replace", busy)
    write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("existing", [True, False])
def test_json_through_a_link(tmp_path: Path, existing: bool) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target.json", tmp_path / "link.json"
    if existing:
        target.write_text("old")
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "link.json", "target.json"]


def test_a_null_byte_in_a_path() -> None:
    with pytest.raises(OutputError, match="cannot be written: embedded null byte"):
        check_place(Path("a\0b"))


def test_a_full_disk_behind_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("models/digits/student.onnx", "--runs", 5, "--json", "-", stdout=full)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "Error: The output cannot be written: No space left on device. Free space there, or choose another place."
    )


def test_memory_that_runs_out_is_no_traceback() -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = run("models/digits/student.onnx", "--runs", 1, "--batch", 1_000_000, preexec_fn=little)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "GB" in done.stderr or "memory" in done.stderr
