"""Several processes train like one: real processes, by torchrun."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.data import load_images
from onnxdistill.errors import DataError, NetworkError, OnnxDistillError
from onnxdistill.recipe import DataTable, FeaturesTable, TrainingTable
from onnxdistill.tasks.base import Objective, TrainingBatch
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, TrainingStatus, follow, leading, train
from onnxdistill.training.team import Team, current_team

TRAINED = ("stored", "features", "adamw")
ON_GPU = ("on a GPU",) if torch.cuda.is_available() else ()


def network(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norms = (nn.BatchNorm2d(width), nn.BatchNorm1d(16 * width, affine=False, momentum=None))
        layers = [
            nn.Conv2d(1, width, 3, 2, 1, bias=False),
            norms[0],
            nn.ReLU(),
            nn.Flatten(),
            norms[1],
            nn.Linear(16 * width, 10),
        ]
        return nn.Sequential(*layers).eval()


def cases() -> dict[str, tuple[dict[str, Any], Guidance]]:
    """Between them: batch norm, stored answers, adapters, clipping, an average, and 20 steps each."""
    features = FeaturesTable(layers=["2"], loss="hint")
    return {
        "stored": ({"average": 0.9, "clip_norm": 0.5}, Guidance((network(8, 1),), views=2)),
        "features": ({"flip": True, "crop_pad": 1}, Guidance((network(12, 1),), features=features)),
        "adamw": ({"optimizer": "adamw", "learning_rate": 0.01}, Guidance()),
        "on a GPU": ({"average": 0.9, "device": "cuda"}, Guidance((network(8, 1),), views=2)),
    }


def trained(case: str) -> dict[str, Any]:
    """The weights after 20 steps, on every process; only the first one's are worth something."""
    torch.set_num_threads(1)
    table = DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64})
    splits = load_images(table, seed=0)
    task = Classification(dataclasses.replace(splits, train=splits.train.subset(np.arange(320))))
    if current_team().rank > 0:
        follow(task)
        return {}
    changes, guidance = cases()[case]
    values = {"epochs": 4, "batch_size": 64, "learning_rate": 0.05, "precision": "float32"} | changes
    with leading():
        objective = Objective(soft_weight=1.0)
        result = train(network(8, 0), task, TrainingTable.model_validate(values), 0, objective, guidance)
    return {"state": result.network.state_dict(), "losses": torch.tensor([record.loss for record in result.history])}


class Pickling(Team):
    """One of two processes, which sends what it does to nobody."""

    size = 2

    def leaders(self, thing: Any) -> Any:
        pickle.dumps(thing)
        return thing


def test_a_network_that_cannot_be_sent_is_refused(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(nn.Linear):
        pass

    monkeypatch.setattr("onnxdistill.training.run.current_team", Pickling)
    settings = TrainingTable.model_validate({"epochs": 1})
    with pytest.raises(NetworkError, match=r"Local cannot be sent to the other processes: .*top level of their file"):
        train(Local(2, 2), digits, settings, 0, Objective())
    normed = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))
    with pytest.raises(
        NetworkError, match=r"Sequential cannot be sent to .*state_dict.* without .* parametrizations; or"
    ):
        train(normed, digits, settings, 0, Objective())
    with pytest.raises(NetworkError, match="Local cannot be sent to the other processes"):
        train(network(8, 0), digits, settings, 0, Objective(soft_weight=1.0), Guidance((Local(64, 10),)))


@pytest.mark.parametrize("case", TRAINED)
def test_two_processes_come_to_the_weights_of_one(case: str, together: dict[str, Any]) -> None:
    two, one = together["trained"][case], trained(case)
    assert torch.allclose(two["losses"], one["losses"], atol=1e-4)
    for name, tensor in one["state"].items():
        assert torch.allclose(two["state"][name].float(), tensor.float(), atol=1e-4), name


@pytest.mark.skipif(not ON_GPU, reason="this torch has no GPU")
def test_two_processes_on_a_gpu_come_to_nearly_the_weights_of_one(together: dict[str, Any]) -> None:
    """They share it, if there is one only; its sums come in another order."""
    two, one = together["trained"]["on a GPU"], trained("on a GPU")
    assert torch.allclose(two["losses"], one["losses"], atol=2e-2)
    for name, tensor in one["state"].items():
        assert torch.allclose(two["state"][name].float(), tensor.float(), atol=2e-2), name


class Damaged(Classification):
    """The second process meets an image that it cannot read, in its third batch or in what teachers look at first."""

    place = 2

    def training_batches(self, *parts: Any) -> Iterator[TrainingBatch]:
        for number, batch in enumerate(super().training_batches(*parts)):
            if number == self.place and current_team().rank == 1:
                raise DataError("7.png is damaged.", "Remove it.")
            yield batch


def dropout_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()


def met(case: str, folder: Path) -> dict[str, Any]:
    """What a training comes to that meets something, on every process."""
    torch.set_num_threads(1)
    splits = load_images(
        DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64}), seed=0
    )
    splits = dataclasses.replace(splits, train=splits.train.subset(np.arange(320)))
    task = (Damaged if case.startswith("damaged") else Classification)(splits)
    Damaged.place = 0 if case == "damaged look" else 2
    if current_team().rank > 0:
        follow(task)
        return {}
    few = 1 if case == "few" else 64
    table = TrainingTable.model_construct(
        **TrainingTable(epochs=4, precision="float32").model_dump() | {"batch_size": few}
    )
    views = Guidance((dropout_network(),), views=1) if case == "damaged look" else Guidance()

    def on_status(status: TrainingStatus) -> None:
        if case == "ended" and status.epoch == 3:
            os._exit(1)

    try:
        with leading():
            path = folder / "state.pt" if case in ("ended", "resumed") else None
            result = train(dropout_network(), task, table, 0, Objective(), views, on_status, path)
    except OnnxDistillError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"state": result.network.state_dict(), "notes": list(result.notes)}


def by_two(asked: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    """What two processes come to, as `__main__` says it; nothing if they are ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["tests.training.test_team", ",".join(asked), str(folder / "two.pt")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    is_ended = "ended" in asked
    assert process.returncode == (1 if is_ended else 0), process.stderr
    found: dict[str, Any] = {} if is_ended else torch.load(folder / "two.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that one start of the processes can do, which takes longer than what they do."""
    return by_two([*TRAINED, *ON_GPU, "damaged", "damaged look", "few"], tmp_path_factory.mktemp("together"), 300)


def test_what_only_one_process_meets_ends_all_of_them(together: dict[str, Any]) -> None:
    """Or is refused before; and then they are ready for the next training."""
    damaged, looked, few = together["met"]
    assert damaged == looked == {"error": "DataError: 7.png is damaged. Remove it."}
    assert few["error"].startswith("UsageError: batch_size = 1 is that of all 2 processes together")


def test_after_an_interruption_every_process_drops_what_it_would_have(tmp_path: Path) -> None:
    by_two(["ended"], tmp_path, 120)
    resumed, whole = by_two(["resumed", "whole"], tmp_path, 120)["met"]
    assert "it went on at epoch 3" in resumed["notes"][0]
    for name, tensor in whole["state"].items():
        assert torch.equal(resumed["state"][name], tensor), name


if __name__ == "__main__":
    asked, place = sys.argv[1].split(","), Path(sys.argv[2])
    # First those that nothing happens to: what an error may leave behind cannot reach them.
    outcome = {
        "trained": {case: trained(case) for case in asked if case in cases()},
        "met": [met(case, place.parent) for case in asked if case not in cases()],
    }
    if current_team().rank == 0:
        torch.save(outcome, place)
