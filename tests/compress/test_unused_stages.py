"""Stages that change nothing, or nothing for the better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxdistill import compress
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.report import Report
from tests.compress.commands import NETWORK


class TestStagesThatChangeNothing:
    """On a tiny network without data: whatever did not become part of the student leaves a note and nothing else."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Callable[..., Report]:
        (tmp_path / "net.py").write_text(NETWORK)

        def compressed(tables: str, function: str = "small") -> Report:
            recipe = tmp_path / "recipe.toml"
            recipe.write_text(
                'name = "tiny"\n[data]\nsource = "folder"\nroot = "nowhere"\nimage_size = 8\ncalibration = 8\n'
                f'[teacher]\nnetwork = "net.py:{function}"\n[bench]\nseconds = 0.1\n{tables}'
            )
            return compress(recipe, out=tmp_path / "run")

        return compressed

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Says that nothing is faster; returns what it was asked about."""
        asked: list[Path] = []

        def slower(before: Path, after: Path, *_: object, **__: object) -> Estimate:
            asked.extend((before, after))
            return Estimate(1.0, 0.99, 1.01)

        monkeypatch.setattr("onnxdistill.device.places.compare", slower)
        return asked

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            ("ratio = 0.5\nmultiple_of = 1000", "prune.multiple_of = 1000"),
            ("ratio = 0.5\nminimum = 500", "prune.minimum = 500"),
            ("ratio = 0.01", "prune.ratio"),
            ('ratio = 0.5\nskip = ["*"]', "prune.skip"),
        ],
    )
    def test_prune_without_a_cut(self, made: Callable[..., Report], gate: list[Path], table: str, reason: str) -> None:
        report = made(f"[prune]\n{table}\n")
        assert [row.stage for row in report.rows] == ["teacher"]
        assert [note for note in report.notes if note.startswith("prune removed nothing: ") and reason in note]
        assert report.groups == []
        assert gate == []

    def test_prune_that_is_not_faster(self, made: Callable[..., Report], gate: list[Path]) -> None:
        report = made("[prune]\nratio = 0.5\n")
        assert gate
        assert [(row.stage, row.applied) for row in report.rows] == [("teacher", True), ("prune", False)]
        assert report.groups == []
        refusals = [note for note in report.notes if note.startswith("prune")]
        assert len(refusals) == 1
        assert "was measured and not used: 1.00× as fast" in refusals[0]
        assert "above 1.02" in refusals[0]

    def test_prune_that_is_used_tells_its_cuts(
        self, made: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onnxdistill.device.places.compare", lambda *_, **__: Estimate(2.0, 1.9, 2.1))
        assert [group.channels_after for group in made("[prune]\nratio = 0.5\n").groups] == [8, 8]

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            ("macs_ratio = 0.5\nmultiple_of = 64", "no rank that is a multiple of 64 saves multiply-adds in any layer"),
            ('macs_ratio = 0.5\nskip = ["*"]', "there is no layer to factorize, or all are skipped"),
            ("macs_ratio = 0.5\nmultiple_of = 4", "low-rank pair"),
        ],
    )
    def test_factorize_without_a_pair(
        self, made: Callable[..., Report], gate: list[Path], table: str, reason: str
    ) -> None:
        report = made(f"[factorize]\n{table}\n")
        notes = [note for note in report.notes if note.startswith("factorize was left out: ")]
        assert len(notes) == 1
        assert reason in notes[0]
        assert ("measured" in notes[0]) == bool(gate)

    def test_a_network_without_multiply_adds(self, made: Callable[..., Report], gate: list[Path]) -> None:
        report = made("[prune]\nratio = 0.5\n[factorize]\nmacs_ratio = 0.5\n", function="silent")
        assert report.teacher.macs == 0
        assert any(note.startswith("prune removed nothing: ") for note in report.notes)
        assert "factorize was left out: there is no layer to factorize." in report.notes
        assert gate == []
