"""Stage `teacher`: build the network to be compressed, load its weights, and train it if the recipe says so."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from onnxdistill.data.images import IMAGENET_MEAN, IMAGENET_STD
from onnxdistill.errors import NetworkError, WeightsError
from onnxdistill.networks import build_network, probe
from onnxdistill.networks.published import Preprocessing, published_preprocessing
from onnxdistill.networks.weights import load_weights
from onnxdistill.recipe import FOLDER_IMAGE_SIZE, DataTable, FurtherTeacherTable, Recipe, TeacherTable, TrainingTable
from onnxdistill.recipe.weights import NO_WEIGHTS, OWN_WEIGHTS
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Score
from onnxdistill.training import OnStatus, TrainingResult, train_guided
from onnxdistill.training.features import check_layers
from onnxdistill.training.hardware import Hardware
from onnxdistill.training.validation import ENOUGH, module_runner

PROBED_BATCH = 2
# Of a network in training mode, which may ask for more.
_TRAINED_BATCH = 16

# Below the teacher, for sure: another size of the same kind of network is nearer.
_FAR_POINTS = 10

_NOT_THERE = (
    "Make tensors of its forward with device=x.device, register others as buffers, or leave out device = 'cuda'."
)

_TEACHER_KEY = re.compile(r"(?<![\w./])teacher\.(?=(?:weights|network)\b)")


@dataclass(frozen=True)
class TeacherResult:
    """The teacher in evaluation mode; its training, if it was trained here; and what is to say of those it followed."""

    network: nn.Module
    training: TrainingResult | None
    notes: tuple[str, ...] = ()


def teacher(
    recipe: Recipe, task: Task, on_status: OnStatus | None = None, checkpoint: Path | None = None
) -> TeacherResult:
    """Builds the teacher.

    Args:
        recipe: Names the network, the weights and the training.
        task: Gives the number of classes, and data to train on.
        on_status: Called during training.
        checkpoint: Where the training keeps its state, and goes on from.

    Raises:
        NetworkError: If the network is unknown, cannot be built or run, or returns what the task cannot use.
        WeightsError: If the weights are missing, damaged, not finite, or of another architecture.
        TrainingError: If training diverges.
        RecipeError: If a layer of `[distill.features]` isn't there.
    """
    table = recipe.teacher
    network = _loaded(table.network, table.weights, task, recipe.seed, table.new_head)
    trainings = [one for one in (table.train, recipe.distill if task.measurable else None) if one is not None]
    if trainings:
        batch = min(_TRAINED_BATCH, *(one.batch_size for one in trainings))
        _check_trainable(table.network, network, task, batch)
        _check_elsewhere(table.network, network, task, batch, trainings)
    if recipe.distill is not None and recipe.distill.features is not None:
        check_layers(network, recipe.distill.features.layers, "teacher")
    if table.train is None:
        return TeacherResult(network, None)
    followed = further_teachers(table.train.teachers, "teacher.train.teachers", task, recipe.seed, table.train)
    notes = notes_on_others("teacher.train.teachers", followed, task)
    training = train_guided(network, followed, task, table.train, recipe.seed, on_status, checkpoint)
    return TeacherResult(training.network, training, tuple(notes))


def further_teachers(
    tables: Sequence[FurtherTeacherTable], place: str, task: Task, seed: int, training: TrainingTable | None = None
) -> list[nn.Module]:
    """The networks of a recipe's `teachers`, in evaluation mode.

    Args:
        tables: Name the networks and their weights.
        place: Their key in the recipe, for messages.
        task: Gives the number of classes.
        seed: Seeds what weights don't cover.
        training: That they are followed in.

    Raises:
        NetworkError: As `teacher`.
        WeightsError: As `teacher`.
    """
    networks = []
    for number, table in enumerate(tables):
        try:
            networks.append(_loaded(table.network, table.weights, task, seed))
            if training is not None and task.measurable:
                _check_elsewhere(table.network, networks[-1], task, PROBED_BATCH, [training], trained=False)
        except (NetworkError, WeightsError) as error:
            named = [_TEACHER_KEY.sub(f"{place}.{number}.", text) for text in (error.what, error.fix)]
            raise type(error)(*named) from error
    return networks


def notes_on_images(recipe: Recipe) -> list[str]:
    """A sentence for every network whose published weights expect other inputs than `[data]` makes of images.

    Args:
        recipe: Names networks and weights that are there. Those of a teacher that is trained here may get used to it.
    """
    tables = dict[str, TeacherTable | FurtherTeacherTable](recipe.further_teachers)
    if recipe.teacher.train is None:
        tables = {"teacher": recipe.teacher, **tables}
    found = []
    for place, table in tables.items():
        wanted = published_preprocessing(table.network, table.weights)
        differing = {} if wanted is None else _other_keys(wanted, recipe.data)
        if differing:
            keys = ", ".join(f"{key} = {value}" for key, value in differing.items())
            found.append(
                f"{place}: {table.weights} is made for other images than [data] gives, and may score lower; set {keys}."
            )
    return found


def notes_on_score(place: str, score: Score, task: Task) -> list[str]:
    """A sentence if a network may as well be guessing.

    Args:
        place: Names the network.
        score: What it reaches.
        task: Has the classes.
    """
    classes = len(task.class_names)
    if score.interval[0] > 100 / classes:
        return []
    return [
        f"{place}: {score.value:.2f} {task.metric.unit} is not surely more than guessing among {classes} classes. "
        "Check that the class folders are in the order that its weights were trained with, and data.mean and data.std."
    ]


def notes_on_others(
    place: str, networks: Sequence[nn.Module], task: Task, teacher: nn.Module | None = None
) -> list[str]:
    """A sentence for every network that is followed but knows little, on some validation samples.

    Args:
        place: Their key in the recipe.
        networks: What is followed beside the teacher, as much as it.
        task: Gives the samples; if it has none, nothing is known.
        teacher: What they should come near; None if it is still to be trained.
    """
    if not networks or not task.measurable:
        return []
    best = None if teacher is None else _validated(teacher, task)
    found = []
    for number, network in enumerate(networks):
        name, score = f"{place}[{number}]", _validated(network, task)
        guessing = notes_on_score(name, score, task)
        found += guessing
        if not guessing and best is not None and best.interval[0] - score.interval[1] > _FAR_POINTS:
            found.append(
                f"{name}: it has {score.value:.2f} {task.metric.unit} on validation where the teacher has "
                f"{best.value:.2f}, and is followed as much. Check what its weights were trained with, or leave it out."
            )
    return found


def _validated(network: nn.Module, task: Task) -> Score:
    return task.score(module_runner(network, task), "validation", most=ENOUGH)


def notes_on_names(network: nn.Module) -> list[str]:
    """A sentence if layers have two names: what is exported knows one of them, and the network may use the other."""
    first: dict[int, str] = {}
    twice: list[str] = []
    for name, module in network.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), name)
        if known != name and any(True for _ in module.parameters(recurse=False)):
            twice.append(f"{known} and {name}")
    if not twice:
        return []
    return [
        f"teacher: {len(twice)} of its layers have two names, such as {twice[0]}, and can hardly be planned. "
        "Register every layer once."
    ]


def _other_keys(wanted: Preprocessing, data: DataTable) -> dict[str, object]:
    """The keys of `[data]` that would have to be others, and their values."""
    if data.source != "folder":
        return {}
    asked = {"mean": list(wanted.mean), "std": list(wanted.std)}
    given = {"mean": data.mean or list(IMAGENET_MEAN), "std": data.std or list(IMAGENET_STD)}
    differing: dict[str, object] = {f"data.{key}": value for key, value in asked.items() if value != given[key]}
    if (data.image_size or FOLDER_IMAGE_SIZE) != wanted.size:
        differing |= {"data.image_size": wanted.size, "data.resize": wanted.resize}
    return differing


def _loaded(name: str, weights: str, task: Task, seed: int, new_head: bool = False) -> nn.Module:
    network = build_network(name, len(task.class_names), seed)
    if weights not in (NO_WEIGHTS, OWN_WEIGHTS):
        load_weights(network, name, weights, new_head)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        for parameter in network.parameters():  # it was made for inference, and says nothing of what is to be trained
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for batch in (PROBED_BATCH, 1):  # where code squeezes, one sample has a dimension less
        task.check_output(probe(name, network, task.example_input(batch)), batch)
    return network


def _check_trainable(name: str, network: nn.Module, task: Task, batch: int) -> None:
    """Refuses a network that returns something else while it is trained, such as outputs of further heads.

    Args:
        name: How the recipe names it.
        network: Not changed.
        task: Gives inputs.
        batch: So many of them.

    Raises:
        NetworkError: If it does, or does not run.
    """
    trained = copy.deepcopy(network).train()
    with torch.random.fork_rng(devices=[]):  # of dropout
        output = probe(name, trained, task.example_input(batch), " in training mode")
    try:
        task.check_output(output, batch)
    except NetworkError as error:
        raise NetworkError(f"In training mode: {error.what}", error.fix) from error


def _check_elsewhere(
    name: str,
    network: nn.Module,
    task: Task,
    batch: int,
    trainings: Sequence[TrainingTable],
    *,
    trained: bool = True,
) -> None:
    """Refuses a network that runs on the processor, but not on the GPU of a training.

    Args:
        name: How the recipe names it.
        network: Not changed.
        task: Gives inputs.
        batch: So many of them.
        trainings: That it takes part in.
        trained: Whether it is what learns in them.

    Raises:
        NetworkError: If it does not run.
    """
    for hardware in {Hardware.of(training) for training in trainings}:
        if hardware.device.type == "cpu":
            continue
        moved = copy.deepcopy(network).to(hardware.device)
        for mode in (False, True) if trained else (False,):
            try:
                with hardware.forked():  # of dropout
                    inputs = task.example_input(batch).to(hardware.device)
                    probe(
                        name, moved.train(mode), inputs, f"{' in training mode' if mode else ''} on {hardware.device}"
                    )
            except NetworkError as error:
                raise NetworkError(error.what, _NOT_THERE) from error
