"""Calibrations that are found again: for the same content only, and never a damaged one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxdistill.quantization import histogramcache
from onnxdistill.quantization.calibration import Feeds, collect
from onnxdistill.quantization.histogram import Histogram
from onnxdistill.quantization.histogramcache import collected
from tests.quantization.graphs import model_of, uniform

NAMES = ["x", "y"]


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was really collected; everything is worth a file."""
    made: list[str] = []

    def noted(model: onnx.ModelProto, names: list[str], batches: Iterator[Feeds]) -> dict[str, Histogram]:
        made.append(" ".join(names))
        return collect(model, names, batches)

    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(histogramcache, "collect", noted)
    monkeypatch.setattr(histogramcache, "_LEAST_SECONDS", 0.0)
    return made


def model(factor: float = 2.0) -> onnx.ModelProto:
    return model_of("g (float[n, 4] x) => (float[n, 4] y) { y = Mul(x, f) }", {"f": np.float32(factor)})


def samples(x: NDArray[np.float32], size: int = 3) -> Callable[[], Iterator[Feeds]]:
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


def same(one: dict[str, Histogram], other: dict[str, Histogram]) -> bool:
    return all(
        np.array_equal(one[name].counts, other[name].counts)
        and (one[name].minimum, one[name].maximum, one[name].width)
        == (other[name].minimum, other[name].maximum, other[name].width)
        for name in NAMES
    )


def test_the_same_content_is_not_run_again(collections: list[str]) -> None:
    x = uniform(12, 4)
    first = collected(model(), NAMES, samples(x))
    assert collections == ["x y"]
    again = collected(model(), NAMES, samples(x, size=5))  # batches do not matter
    assert same(first, again)
    assert list(again) == NAMES
    assert len(collections) == 1


@pytest.mark.parametrize("change", ["model", "samples", "order", "names"])
def test_other_content_is(collections: list[str], change: str) -> None:
    x = uniform(12, 4)
    collected(model(), NAMES, samples(x))
    other = x.copy()
    if change == "samples":
        other[7, 2] += 1
    if change == "order":
        other = other[::-1].copy()
    names = ["y"] if change == "names" else NAMES
    made = collected(model(3.0 if change == "model" else 2.0), names, samples(other))
    assert len(collections) == 2
    assert list(made) == names


def test_an_empty_histogram_is_kept_too(collections: list[str]) -> None:
    first = collected(model(), NAMES, lambda: iter([{"x": np.zeros((0, 4), np.float32)}]))
    again = collected(model(), NAMES, lambda: iter([{"x": np.zeros((0, 4), np.float32)}]))
    assert len(collections) == 1
    assert same(first, again)
    assert again["y"].total == 0


@pytest.mark.parametrize("damage", [b"", b"PK", b"nonsense"])
def test_a_damaged_file_is_made_anew(collections: list[str], damage: bytes, tmp_path: Path) -> None:
    x = uniform(12, 4)
    first = collected(model(), NAMES, samples(x))
    (file,) = (tmp_path / "cache" / "calibrations").iterdir()
    content = file.read_bytes()
    for broken in (damage, content[:-40], content[:300] + bytes(20) + content[320:]):
        file.write_bytes(broken)
        assert same(first, collected(model(), NAMES, samples(x)))
    assert len(collections) >= 3
    assert file.read_bytes() == content


def test_no_damage_of_a_byte_is_a_traceback_or_another_histogram(collections: list[str], tmp_path: Path) -> None:
    x = uniform(12, 4)
    first = collected(model(), NAMES, samples(x))
    (file,) = (tmp_path / "cache" / "calibrations").iterdir()
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 300, replace=False):
        broken = bytearray(content)
        broken[place] ^= int(rng.integers(1, 256))
        found = histogramcache._read(bytes(broken), NAMES)
        assert found is None or same(first, found)


def test_inputs_of_unequal_lengths_belong_together(collections: list[str]) -> None:
    text = "g (float[n, 1] a, float[m, 1] b) => (float[n, m] y) { t = Transpose(b)\n y = MatMul(a, t) }"
    net = model_of(text)
    net.graph.value_info.extend([net.graph.output[0]])
    a, b = uniform(4, 1), uniform(4, 1, seed=1)
    for cut in (1, 3):
        batches = [{"a": a[:cut], "b": b[:2]}, {"a": a[cut:], "b": b[2:]}]
        collected(net, ["y"], lambda batches=batches: iter(batches))  # type: ignore[misc]
    assert len(collections) == 2


def test_without_tensors_nothing_is_looked_for(collections: list[str]) -> None:
    assert collected(model(), [], samples(uniform(12, 4))) == {}
    assert collections == []


def test_a_cache_that_cannot_be_written_is_none(collections: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    collected(model(), NAMES, samples(uniform(12, 4)))
    collected(model(), NAMES, samples(uniform(12, 4)))
    assert len(collections) == 2


def test_what_is_quick_to_collect_is_not_kept(
    collections: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(histogramcache, "_LEAST_SECONDS", 60.0)
    collected(model(), NAMES, samples(uniform(12, 4)))
    assert not (tmp_path / "cache").exists()


def test_the_oldest_files_go(collections: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(histogramcache, "_MOST_FILES", 2)
    for factor in (1.0, 2.0, 3.0):
        collected(model(factor), NAMES, samples(uniform(12, 4)))
    assert len(list((tmp_path / "cache" / "calibrations").iterdir())) == 2
    collected(model(3.0), NAMES, samples(uniform(12, 4)))
    assert len(collections) == 3
