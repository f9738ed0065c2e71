"""Mistakes that `onnxdistill compress` refuses before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onnxdistill.device.session import most_threads
from onnxdistill.networks import build_network
from tests.compress.commands import EARLIER, QUICK, image_folder, run_here

Refuse = Callable[..., None]


class TestRefusals:
    """Each is one paragraph with exit code 2, and the earlier run stays as it was."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        (tmp_path / "recipe.toml").write_text(QUICK)
        image_folder(tmp_path / "images")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "report.json").write_text(EARLIER)
        return tmp_path

    @pytest.fixture
    def refuse(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
        """Runs the command in this process."""

        def refused(
            *settings: str,
            recipe: str = "recipe.toml",
            out: str = "run",
            options: tuple[str, ...] = (),
            parts: tuple[str, ...],
        ) -> None:
            sets = [part for setting in settings for part in ("--set", setting)]
            command = ("compress", place / recipe, "--out", place / out, *sets, *options)
            process = run_here(monkeypatch, capsys, *command)
            message = process.stderr
            assert process.returncode == 2, message
            assert "\n\n" not in message.strip()
            for part in parts:
                assert part in " ".join(message.split())
            assert (place / "run" / "report.json").read_text() == EARLIER
            assert sorted(path.name for path in place.iterdir()) == ["images", "recipe.toml", "run"]

        return refused

    def test_missing_recipe(self, refuse: Refuse) -> None:
        refuse(recipe="none.toml", parts=("none.toml", "does not exist"))

    def test_wrong_key(self, refuse: Refuse) -> None:
        refuse("prune.ration=0.5", parts=("prune.ration: unknown key", "'ratio'"))

    def test_wrong_type(self, refuse: Refuse) -> None:
        refuse("distill.epochs=many", parts=("distill.epochs = 'many'", "integer"))

    def test_unknown_provider(self, refuse: Refuse) -> None:
        refuse("bench.provider=cudaa", parts=("cudaa", "Did you mean 'cuda'"))

    def test_unusable_provider(self, refuse: Refuse) -> None:
        refuse("bench.provider=cuda", parts=("no execution provider 'cuda'", "it has: "))

    def test_unknown_network(self, refuse: Refuse) -> None:
        refuse("teacher.network=resnet18", parts=("'resnet18'", "'torchvision:resnet18'"))

    def test_missing_network_function(self, refuse: Refuse) -> None:
        refuse("teacher.network=nowhere.py:make", parts=("nowhere.py", "does not exist"))
        refuse("teacher.network=no_such_module:make", parts=("'no_such_module'", "cannot be imported"))
        refuse("teacher.network=math:pie", parts=("math has no function 'pie'",))

    def test_missing_data(self, place: Path, refuse: Refuse) -> None:
        root = place / "nowhere"
        refuse("data.source=folder", f"data.root={root}", parts=(str(root), "is not a folder"))

    def test_empty_data(self, place: Path, refuse: Refuse) -> None:
        root = place / "images" / "empty"
        root.mkdir()
        refuse("data.source=folder", f"data.root={root}", parts=(str(root), "neither train/ nor test/"))

    def test_missing_class(self, place: Path, refuse: Refuse) -> None:
        for path in (place / "images" / "test" / "dog").iterdir():
            path.unlink()
        settings = ("data.source=folder", f"data.root={place / 'images'}", "data.image_size=8")
        refuse(*settings, parts=(str(place / "images" / "test"), "no image of the class 'dog'"))

    def test_missing_weights(self, refuse: Refuse) -> None:
        refuse("teacher.weights=none.pt", parts=("none.pt does not exist",))

    def test_truncated_weights(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "cut.pt"
        torch.save(build_network("digits-resnet", 10, 0).state_dict(), path)
        for length in (5000, 10, 0):
            path.write_bytes(path.read_bytes()[:length])
            refuse(f"teacher.weights={path}", parts=(str(path), "cannot be read as a PyTorch state dict"))

    def test_text_for_weights(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "notes.pt"
        path.write_text("not weights\n")
        refuse(f"teacher.weights={path}", parts=(str(path), "cannot be read as a PyTorch state dict"))

    def test_weights_that_would_run_code(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "whole.pt"
        torch.save(build_network("digits-resnet", 10, 0), path)
        refuse(f"teacher.weights={path}", parts=(str(path), "torch.save(network.state_dict(), path)"))

    def test_something_else_than_a_state_dict(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "list.pt"
        torch.save([1, 2], path)
        refuse(f"teacher.weights={path}", parts=(str(path), "holds a list, not a state dict"))

    def test_weights_of_another_architecture(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "other.pt"
        torch.save(build_network("cifar-resnet20", 10, 0).state_dict(), path)
        refuse(f"teacher.weights={path}", parts=(str(path), "is for another architecture", "needs new_head = true"))

    def test_torchvision_weights_as_torchvision_writes_them(self, refuse: Refuse) -> None:
        refuse(
            "teacher.weights=ResNet18_Weights.DEFAULT", parts=("does not exist", "write the last part alone: DEFAULT")
        )

    def test_unwritable_place(self, refuse: Refuse) -> None:
        # A file where a folder should be refuses root, too.
        refuse(out="recipe.toml/run", parts=("recipe.toml/run", "cannot be written"))

    @pytest.mark.skipif(most_threads() >= 1000, reason="needs a machine for which 1000 threads are too many")
    def test_more_threads_than_make_sense(self, refuse: Refuse) -> None:
        refuse("bench.threads=1000", parts=("1000 threads were asked for", "Ask for at most"))

    def test_a_batch_beyond_the_memory(self, place: Path, refuse: Refuse) -> None:
        data = (
            "data.source=folder",
            f"data.root={place / 'images'}",
            "data.calibration=2",
            "data.image_size=1000",
            "data.resize=1000",
        )
        refuse(*data, "bench.batch=65536", parts=("bench.batch = 65536 takes 786.4 GB", "smaller batch"))

    def test_a_plan_for_a_budget_that_others_undo(self, refuse: Refuse) -> None:
        for setting in ("prune.ratio=0.3", "plan.latency_ms=3", "factorize.macs_ratio=0.5"):
            refuse(setting, options=("--speedup", "4"), parts=(setting, "has no effect beside --speedup"))

    def test_a_network_beside_the_teacher_is_named_by_its_key(self, refuse: Refuse) -> None:
        network = 'distill={epochs=1, teachers=[{network="digits-resnetz", weights="a.pt"}]}'
        refuse(network, parts=("distill.teachers.0.network = 'digits-resnetz' is not a network that is known here",))

    def test_accuracy_that_cannot_be_measured(self, refuse: Refuse) -> None:
        for asked in ((), ("--max-drop", "0.5")):
            settings = ("teacher.train=", "limits.max_drop=0.5")[: 1 if asked else 2]
            refuse(*settings, options=asked, parts=("limits.max_drop was asked for, and no accuracy can be measured",))

    def test_somebody_elses_folder(self, refuse: Refuse) -> None:
        refuse(out="images", parts=("images", "not the folder of an earlier run"))
