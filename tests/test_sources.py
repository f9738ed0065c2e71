"""What networks are built from: files of the user's own, and of a real network."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxdistill import compress
from onnxdistill.networks import build_network
from onnxdistill.recipe import Recipe
from onnxdistill.report import load_report
from onnxdistill.sources import Source, network_sources


def recipe_of(network: str, weights: str = "none", **tables: Any) -> Recipe:
    teacher = {"network": network, "weights": weights}
    return Recipe.model_validate({"name": "x", "data": {"source": "digits"}, "teacher": teacher, **tables})


def source(network: str, network_sha256: str | None, weights: str | None, weights_sha256: str | None) -> Source:
    return {
        "network": network,
        "network_sha256": network_sha256,
        "weights": weights,
        "weights_sha256": weights_sha256,
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_by_the_place_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, module, script = tmp_path / "w.pt", tmp_path / "my_networks.py", tmp_path / "nets.py"
    module.write_text("def make(): ...")
    script.write_text("def make():\n    pass")
    weights.write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    teachers = [
        {"network": "my_networks:make", "weights": str(weights)},
        {"network": f"{script}:make", "weights": str(tmp_path / "none.pt")},
    ]
    recipe = recipe_of("digits-resnet", str(weights), distill={"epochs": 1, "teachers": teachers})
    assert network_sources(recipe, 10) == {
        "teacher": source("digits-resnet", None, None, sha256(weights)),
        "distill.teachers[0]": source("my_networks:make", sha256(module), None, sha256(weights)),
        "distill.teachers[1]": source(f"{script}:make", sha256(script), str(tmp_path / "none.pt"), None),
    }
    # What is imported is what runs.
    module.write_text("# something else")
    script.write_text("# something else")
    later = network_sources(recipe, 10)
    assert later["distill.teachers[0]"]["network_sha256"] != sha256(module)
    assert later["distill.teachers[1]"]["network_sha256"] == sha256(script)


@pytest.mark.parametrize(
    ("network", "weights"),
    [
        ("no_such_module:make", "own"),
        ("torchvision:resnet50", "IMAGENET1K_V1"),
        ("torchvision:resnet50", "IMAGENET1K_V2"),
        ("digits-resnet", "none"),
        ("digits-resnet", "/dev/stdin"),
        ("digits-resnet", "/no/such/file.pt"),
    ],
)
def test_what_has_no_digest_has_a_name(network: str, weights: str) -> None:
    found = network_sources(recipe_of(network, weights), 1000)
    assert found == {"teacher": source(network, None, weights, None)}


def test_what_is_read_without_an_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    found = network_sources(recipe_of("digits-resnet", str(tmp_path / "w.pt")), 10)
    assert found["teacher"]["weights_sha256"] is None


def test_own_weights_that_cannot_be_told_apart_are_like_no_others(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def extra_repr(self):\n        raise RuntimeError\n"
        "\n\ndef make():\n    return Net(2, 2)\n"
    )
    found = [network_sources(recipe_of(f"{tmp_path}/nets.py:make", "own"), 2) for _ in range(2)]
    assert found[0] != found[1]


def test_what_a_function_draws_is_left_to_the_network_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import random\n\nimport numpy as np\nfrom torch import nn\n\n\ndef make():\n    net = nn.Linear(2, 2)\n"
        "    nn.init.constant_(net.weight, random.random() + np.random.rand())\n    return net\n"
    )
    recipe = recipe_of(f"{tmp_path}/nets.py:make", "own")
    before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    assert network_sources(recipe, 2) == network_sources(recipe, 2)
    assert (random.getstate(), repr(np.random.get_state())) == before  # noqa: NPY002


def test_weights_that_a_function_loads(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    net = nn.Linear(2, 2)\n"
        f"    net.load_state_dict(torch.load({str(tmp_path / 'w.pt')!r}))\n    return net\n"
    )
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
        found.append(network_sources(recipe_of(f"{tmp_path}/nets.py:make", "own"), 2)["teacher"])
    assert found[0] == found[1]
    assert found[0]["network_sha256"] == found[2]["network_sha256"]
    assert None is not found[0]["weights_sha256"] != found[2]["weights_sha256"]


def test_a_run_says_what_it_was_made_from(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    torch.save(build_network("digits-resnet", 10, 0).state_dict(), weights)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"name = 'x'\n[data]\nsource = 'digits'\n[teacher]\nnetwork = 'digits-resnet'\nweights = '{weights}'\n"
        "[bench]\nseconds = 0.1\n"
    )
    report = compress(recipe, out=tmp_path / "out")
    assert report.sources == {"teacher": source("digits-resnet", None, None, sha256(weights))}
    assert load_report(tmp_path / "out" / "report.json") == report
