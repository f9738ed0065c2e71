"""The accuracy ladder on real networks, each with a fault that one of the rungs mends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.journal import Journal
from onnxdistill.quantization import ladder as module
from onnxdistill.quantization.ladder import Held, Ladder, Loss, anew
from onnxdistill.quantization.scheme import Scheme
from onnxdistill.quantization.workshop import Form, Workshop
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export

PLAIN = Form(Scheme("uint8", weight_bits=7))


def samples(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((32, 3, 8, 8), dtype=np.float32)


def calibration() -> Iterator[dict[str, NDArray[np.float32]]]:
    yield {"input": samples()}


class ErrorOfOutputs:
    """Measures for a test: a loss is the root mean squared error of the outputs, in percent of their own."""

    def __init__(
        self, source: Path, limit: float, faster: Callable[[Path], bool], low: float, keeps: Callable[[Path], bool]
    ) -> None:
        self.is_faster, self.keeps_speed = faster, keeps
        self._limit, self._low = limit, low
        self._expected = self._run(source)

    def loss(self, path: Path) -> Loss:
        error = np.sqrt(np.mean((self._run(path) - self._expected) ** 2) / np.mean(self._expected**2))
        return Loss(100 * float(error), self._low)

    def refuses(self, loss: Loss) -> bool:
        return loss.points > self._limit and loss.low > 0

    def may_be_chance(self, loss: Loss) -> bool:
        return loss.low <= self._limit

    def _run(self, path: Path) -> NDArray[np.float32]:
        return open_session(path, SessionSettings()).run({"input": samples(1)})["output"]


class Plain(nn.Module):
    """Three convolutions that int8 suits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


class Unequal(Plain):
    """One channel is a thousand times as large as the others, and the next layer makes up for it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.first.bias[0] *= 1000  # type: ignore[index]
            self.second.weight[:, 0] /= 1000


class Cancelling(Plain):
    """A layer whose outputs are what two large numbers differ by: no 8 bits hold them."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        large = 3000 * self.second(x)
        return self.third(torch.relu(large + x) - torch.relu(large))


def climb(network: nn.Module, folder: Path, limit: float, **how: object) -> tuple[Ladder, Held]:
    source = folder / "float.onnx"
    export(network.eval(), torch.from_numpy(samples()), source, ExportTable())
    faster, low = how.pop("faster", lambda path: True), how.pop("low", 0.1)
    keeps = how.pop("keeps", lambda path: True)
    measures = ErrorOfOutputs(source, limit, faster, low, keeps)  # type: ignore[arg-type]
    workshop = Workshop(source, calibration)
    remembered = how.pop("remembered", anew)
    ladder = Ladder(workshop, measures, limit, folder, lambda _: None, remembered)  # type: ignore[arg-type]
    workshop.write(PLAIN, folder / "plain.onnx")
    return ladder, ladder.climb(PLAIN, folder / "plain.onnx", **{"any_ranges": True, **how})  # type: ignore[arg-type]


def test_no_rung_is_climbed_that_is_not_needed(tmp_path: Path) -> None:
    ladder, held = climb(Plain(), tmp_path, limit=5.0)
    (rung,) = ladder.rungs
    assert rung.kept
    assert rung.loss == held.loss
    assert held.form == PLAIN
    onnx.checker.check_model(onnx.load(held.path))


def test_channels_that_differ_a_thousandfold_are_equalized(tmp_path: Path) -> None:
    ladder, held = climb(Unequal(), tmp_path, limit=3.0)
    assert held.form.equalization == "exact"
    assert ladder.rungs[-1].name == "channels equalized, exact"
    assert ladder.rungs[0].loss is not None
    assert ladder.rungs[0].loss.points > 3 * held.loss.points


def test_a_layer_that_no_8_bits_hold_goes_back_to_float(tmp_path: Path) -> None:
    ladder, held = climb(Cancelling(), tmp_path, limit=10.0)
    assert held.loss.points <= 10
    assert held.form.scheme.float_nodes
    # Not all of it: what int8 doesn't hurt stays.
    types = {node.op_type for node in onnx.load(held.path).graph.node}
    assert "QuantizeLinear" in types
    assert any("operators in float" in rung.name for rung in ladder.rungs if rung.kept)


def test_the_rung_that_ships_is_marked_and_no_other_file_is_left(tmp_path: Path) -> None:
    ladder, held = climb(Cancelling(), tmp_path, limit=10.0)
    final = [rung for rung in ladder.rungs if rung.kept][-1]
    assert final.loss == held.loss
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"float.onnx", held.path.name}
    assert held.form.restored == held.form.scheme.float_nodes


def test_accuracy_is_not_bought_with_the_speed_that_was_promised(tmp_path: Path) -> None:
    """Operators go back to float only where that is fast enough; training costs no time of a call."""
    tried: list[Path] = []

    def finetune(before: Path, after: Path) -> str:
        tried.append(before)
        shutil.copy(before.with_name("float.onnx"), after)  # as good as it can get
        return ""

    def in_vain(before: Path, _after: Path) -> str:
        tried.append(before)
        return "It did not help."

    quantizers: list[int] = []

    def keeps(path: Path) -> bool:
        quantizers.append(sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node))
        return quantizers[-1] >= quantizers[0]  # of the file that the ladder stands on

    (tmp_path / "kept").mkdir()
    ladder, held = climb(Cancelling(), tmp_path / "kept", limit=10.0, keeps=keeps, finetune=finetune)
    assert not held.form.scheme.float_nodes
    assert "slower than its limit" in {rung.note for rung in ladder.rungs}
    assert (len(tried), ladder.rungs[-1].name) == (1, "trained with int8")
    assert {path.name for path in (tmp_path / "kept").glob("*.onnx")} == {"float.onnx", held.path.name}
    # Where nothing else is accurate enough, it is faster than float32 at least.
    quantizers.clear()
    (tmp_path / "slower").mkdir()
    ladder, held = climb(Cancelling(), tmp_path / "slower", limit=10.0, low=20.0, keeps=keeps, finetune=in_vain)
    assert held.form.scheme.float_nodes
    assert held.loss.points <= 10
    assert (len(tried), ladder.rungs[-1].loss) == (2, held.loss)
    assert (ladder.rungs[-1].kept, ladder.rungs[-1].note) == (True, "slower than its limit")
    assert len({rung.name for rung in ladder.rungs}) == len(ladder.rungs)  # none is told twice
    assert {path.name for path in (tmp_path / "slower").glob("*.onnx")} == {"float.onnx", held.path.name}
    # A loss that may be chance is no reason to miss for certain what was promised.
    quantizers.clear()
    (tmp_path / "chance").mkdir()
    _, held = climb(Cancelling(), tmp_path / "chance", limit=10.0, low=0.1, keeps=keeps, finetune=in_vain)
    assert not held.form.scheme.float_nodes
    assert {path.name for path in (tmp_path / "chance").glob("*.onnx")} == {"float.onnx", held.path.name}
    # Where it is too slow in any case, what is more accurate is as good.
    (tmp_path / "missed").mkdir()
    _, held = climb(Cancelling(), tmp_path / "missed", limit=10.0, keeps=lambda _: False, finetune=finetune)
    assert held.form.scheme.float_nodes
    assert len(tried) == 3


def test_a_run_that_goes_on_takes_operators_back_in_the_order_that_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed again, another order would make another file, and the training of the first one would be of no use."""
    (tmp_path / "first").mkdir()
    (tmp_path / "again").mkdir()
    with suppress(KeyboardInterrupt), Journal(tmp_path / "run") as journal:
        _, first = climb(Cancelling(), tmp_path / "first", limit=10.0, remembered=journal.decision)
        raise KeyboardInterrupt
    monkeypatch.setattr(module, "rank_operators", None)  # not called again
    with Journal(tmp_path / "run") as journal:
        _, again = climb(Cancelling(), tmp_path / "again", limit=10.0, remembered=journal.decision)
    assert first.form.scheme.float_nodes
    assert again.form == first.form
    assert again.path.read_bytes() == first.path.read_bytes()


def test_nothing_is_slowed_down_for_a_loss_that_may_be_chance(tmp_path: Path) -> None:
    ladder, held = climb(Cancelling(), tmp_path, limit=1e-9, low=-0.1)
    assert len(ladder.rungs) > 5
    assert not held.form.scheme.float_nodes


def test_what_is_slower_than_float_is_not_taken(tmp_path: Path) -> None:
    ladder, held = climb(Cancelling(), tmp_path, limit=1e-9, faster=lambda path: False)
    slow = [rung for rung in ladder.rungs if rung.note == "not faster than float32"]
    assert slow
    assert not any(rung.kept for rung in slow)
    assert not held.form.scheme.float_nodes


@pytest.mark.parametrize("refusal", ["", "its operators cannot be trained"])
def test_training_comes_last(tmp_path: Path, refusal: str) -> None:
    seen: list[Path] = []

    def finetune(path: Path, target: Path) -> str:
        seen.append(path)
        assert path.is_file()
        if not refusal:
            export(Plain().eval(), torch.from_numpy(samples()), target, ExportTable())  # nothing lost at all
        return refusal

    ladder, held = climb(Plain(), tmp_path, limit=0.0, finetune=finetune, faster=lambda path: False)
    last = ladder.rungs[-1]
    assert last.name == "trained with int8"
    assert last.note == refusal
    assert last.kept == (refusal == "")
    assert len(seen) == 1
    assert (held.loss.points == 0) == (refusal == "")
