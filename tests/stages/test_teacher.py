"""The teacher: what it returns is checked before anything else is done with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from onnxdistill.errors import NetworkError, WeightsError
from onnxdistill.recipe import FurtherTeacherTable, Recipe
from onnxdistill.stages.teacher import (
    further_teachers,
    notes_on_images,
    notes_on_names,
    notes_on_others,
    teacher,
)
from onnxdistill.tasks.classification import Classification, build_classification
from onnxdistill.training import TrainingResult

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs, change):
        super().__init__()
        self.linear = nn.Linear(64, outputs)
        self.change = change
    def forward(self, x):
        return self.change(self.linear(x.flatten(1)))

def right(): return Net(10, lambda y: y)
def five(): return Net(5, lambda y: y)
def hundred(): return Net(100, lambda y: y)
def flat(): return Net(10, lambda y: y.flatten())
def deep(): return Net(10, lambda y: y[:, :, None])
def pair(): return Net(10, lambda y: (y, y))
def table(): return Net(10, lambda y: {"logits": y})
def double(): return Net(10, lambda y: y.double())
def weights64(): return Net(10, lambda y: y).double()
class Heads(Net):
    def forward(self, x):
        y = super().forward(x)
        return (y, y) if self.training else y

class Later(Net):
    def forward(self, x):
        return super().forward(x) / ({}["x"] if self.training else 1)

def heads(): return Heads(10, lambda y: y)
def fails_later(): return Later(10, lambda y: y)
def fails(): return Net(10, lambda y: y / {}["x"])
def seven(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
class Squeezing(Net):
    def forward(self, x): return super().forward(x).squeeze()
def squeezes(): return Squeezing(10, lambda y: y)
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


def recipe(network: str, **tables: object) -> Recipe:
    values = {"name": "x", "data": {"source": "digits"}, "teacher": {"network": network, "train": {"epochs": 1}}}
    return Recipe.model_validate(values | tables)


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("five", "returns float32 [2, 5], not float32 logits [2, 10] for 2 images"),
        ("hundred", "returns float32 [2, 100], not float32 logits [2, 10]"),
        ("flat", "returns float32 [20], not"),
        ("deep", "returns float32 [2, 10, 1], not"),
        ("heads", "In training mode: The teacher returns a tuple, not one tensor"),
        ("fails_later", "does not run on float32 images [16 x 1 x 8 x 8] in training mode: KeyError"),
        ("squeezes", "returns float32 [10], not"),
        ("double", "returns float64 [2, 10], not"),
        ("pair", "returns a tuple, not one tensor of float32 logits [2, 10]"),
        ("table", "returns a dict, not one tensor"),
        ("fails", "does not run on float32 images [2 x 1 x 8 x 8]: KeyError: 'x'"),
        ("weights64", "does not run on float32 images [2 x 1 x 8 x 8]: RuntimeError: "),
    ],
)
def test_outputs_that_the_task_cannot_use(digits: Classification, nets: Path, function: str, part: str) -> None:
    with pytest.raises(NetworkError) as caught:
        teacher(recipe(f"{nets}:{function}"), digits)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_the_network_refuses() -> None:
    data = {"source": "folder", "root": "/nowhere", "image_size": 32}
    wanted = recipe("torchvision:vit_b_16", data=data, teacher={"network": "torchvision:vit_b_16"})
    with pytest.raises(NetworkError, match=r"\[2 x 3 x 32 x 32\]: AssertionError: .*data\.image_size"):
        teacher(wanted, build_classification(wanted))


@pytest.mark.parametrize("function", ["right", "lazy"])
def test_a_network_that_fits_is_trained(digits: Classification, nets: Path, function: str) -> None:
    result = teacher(recipe(f"{nets}:{function}"), digits)
    assert result.training is not None
    assert result.training.best_score > result.training.start_score
    assert not any(parameter.is_inference() for parameter in result.network.parameters())


def test_a_network_that_is_followed_is_heard(digits: Classification, nets: Path, tmp_path: Path) -> None:
    known = teacher(recipe(f"{nets}:right"), digits).network.state_dict()
    torch.save(known, tmp_path / "w.pt")

    def trained(weights: str | None) -> TrainingResult:
        followed = [] if weights is None else [{"network": f"{nets}:right", "weights": weights}]
        # No labels are read: what is learned is what the other network says.
        train = {"epochs": 2} if weights is None else {"epochs": 2, "teachers": followed, "hard_weight": 0.0}
        training = teacher(recipe("", teacher={"network": f"{nets}:right", "train": train}), digits).training
        assert training is not None
        return training

    alone, following = trained(None), trained(str(tmp_path / "w.pt"))
    assert following.best_score > following.start_score + 10
    assert not torch.equal(*(result.network.state_dict()["linear.weight"] for result in (alone, following)))
    with pytest.raises(WeightsError, match=r"teacher\.train\.teachers\.0\.weights = .*/teacher\.pt does not exist"):
        trained(str(tmp_path / "none" / "teacher.pt"))


def test_networks_that_know_little_are_told_of(digits: Classification, nets: Path, tmp_path: Path) -> None:
    good = teacher(recipe(f"{nets}:right"), digits).network
    weight, bias = good.state_dict()["linear.weight"], good.state_dict()["linear.bias"]
    order = [1, 0, 3, 2, 4, 5, 6, 7, 8, 9]
    states = {"good": (weight, bias), "swapped": (weight[order], bias[order]), "none": (0 * weight, 0 * bias)}
    for name, tensors in states.items():
        torch.save(dict(zip(("linear.weight", "linear.bias"), tensors, strict=True)), tmp_path / f"{name}.pt")
    followed = [{"network": f"{nets}:right", "weights": str(tmp_path / f"{name}.pt")} for name in states]
    train = {"epochs": 1, "teachers": followed}
    trained = teacher(recipe("", teacher={"network": f"{nets}:right", "train": train}), digits)
    (note,) = trained.notes
    assert note.startswith("teacher.train.teachers[2]: ")
    assert "not surely more than guessing among 10 classes" in note
    tables = [FurtherTeacherTable.model_validate(table) for table in followed]
    others = further_teachers(tables, "distill.teachers", digits, 0)
    swapped, guessing = notes_on_others("distill.teachers", others, digits, good)
    assert re.match(r"distill\.teachers\[1\]: it has .* where the teacher has .*, and is followed as much\.", swapped)
    assert guessing.startswith("distill.teachers[2]: ")
    assert notes_on_others("distill.teachers", others[:1], digits, good) == []


def test_a_network_that_was_made_for_inference_is_trained_as_a_whole(digits: Classification, nets: Path) -> None:
    nets.write_text(f"{NETS}\ndef frozen(): return right().requires_grad_(False)\n")
    network = teacher(recipe("", teacher={"network": f"{nets}:frozen"}), digits).network
    assert all(parameter.requires_grad for parameter in network.parameters())
    nets.write_text(
        f"{NETS}\ndef table():\n    net = right().requires_grad_(False)\n"
        "    net.index = nn.Parameter(torch.arange(3), requires_grad=False)\n    return net\n"
    )
    network = teacher(recipe("", teacher={"network": f"{nets}:table"}), digits).network
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == ["index"]


def test_a_function_may_load_its_weights(digits: Classification, nets: Path, tmp_path: Path) -> None:
    state = teacher(recipe(f"{nets}:right"), digits).network.state_dict()
    torch.save(state, tmp_path / "w.pt")
    file = str(tmp_path / "w.pt")
    loads = f"def loads():\n    net = right()\n    net.load_state_dict(torch.load({file!r}))\n    return net\n"
    nets.write_text(f"{NETS}\n{loads}")
    loaded = teacher(recipe("", teacher={"network": f"{nets}:loads", "weights": "own"}), digits).network
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_weights_are_loaded(digits: Classification, nets: Path, tmp_path: Path) -> None:
    state = teacher(recipe(f"{nets}:right"), digits).network.state_dict()
    torch.save(state, tmp_path / "w.pt")
    for function in ("right", "lazy"):
        named = state if function == "right" else {f"1.{k.removeprefix('linear.')}": v for k, v in state.items()}
        torch.save(named, tmp_path / "w.pt")
        table = {"network": f"{nets}:{function}", "weights": str(tmp_path / "w.pt")}
        loaded = teacher(recipe("", teacher=table), digits)
        assert loaded.training is None
        assert all(torch.equal(tensor, named[name]) for name, tensor in loaded.network.state_dict().items())


def test_without_data_a_network_may_have_any_number_of_outputs(nets: Path) -> None:
    data = {"source": "folder", "root": "/nowhere", "image_size": 8}
    wanted = recipe("", data=data, teacher={"network": f"{nets}:seven"})
    assert teacher(wanted, build_classification(wanted)).training is None


@pytest.mark.parametrize(
    ("data", "network"),
    [({"source": "digits"}, "digits-resnet"), ({"source": "cifar10", "root": "/nowhere"}, "cifar-resnet20")],
)
def test_latency_only_networks_have_the_outputs_of_the_source(data: dict[str, str], network: str) -> None:
    wanted = recipe("", data=data, teacher={"network": network})
    task = build_classification(wanted)
    assert teacher(wanted, task).network(task.example_input(2)).shape == (2, 10)


@pytest.mark.parametrize(
    ("weights", "data", "keys"),
    [
        ("IMAGENET1K_V1", {}, None),
        ("IMAGENET1K_V1", {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": 232}, None),
        ("mine.pt", {"mean": [0.5] * 3, "std": [0.5] * 3}, None),
        ("none", {"mean": [0.5] * 3, "std": [0.5] * 3}, None),
        ("IMAGENET1K_SWAG_E2E_V1", {}, "data.image_size = 384, data.resize = 384"),
        ("IMAGENET1K_SWAG_E2E_V1", {"image_size": 384}, None),
        (
            "IMAGENET1K_V1",
            {"mean": [0.5] * 3, "std": [0.5] * 3},
            "data.mean = [0.485, 0.456, 0.406], data.std = [0.229, 0.224, 0.225]",
        ),
    ],
)
def test_published_weights_for_other_images_are_told(weights: str, data: dict[str, object], keys: str | None) -> None:
    named = {"network": "torchvision:vit_b_16", "weights": weights}
    images = {"source": "folder", "root": "images", **data}
    said = (
        ""
        if keys is None
        else f"{weights} is made for other images than [data] gives, and may score lower; set {keys}."
    )
    expected = [] if keys is None else [f"teacher: {said}"]
    assert notes_on_images(recipe("", data=images, teacher=named)) == expected
    # It gets used to them.
    assert notes_on_images(recipe("", data=images, teacher={**named, "train": {"epochs": 1}})) == []
    if weights != "none":
        further = recipe(
            "", data=images, teacher={"network": "x", "weights": "x.pt"}, distill={"epochs": 1, "teachers": [named]}
        )
        assert notes_on_images(further) == ([] if keys is None else [f"distill.teachers[0]: {said}"])


def test_layers_with_two_names_are_told() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
            self.features = nn.Sequential(*self.backbone.children())

    (note,) = notes_on_names(Wrapped())
    assert note.startswith(
        "teacher: 2 of its layers have two names, such as backbone.0 and features.0, and can hardly "
    )
    # What has no weights may stand wherever it likes.
    relu = nn.ReLU()
    assert notes_on_names(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)) == []
