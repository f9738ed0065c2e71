"""The teacher of a recipe as an ONNX file, for what does not depend on its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.recipe.weights import NO_WEIGHTS
from onnxdistill.stages.export import export
from onnxdistill.stages.teacher import teacher
from onnxdistill.tasks import TASKS, Task

_EXPORTED_BATCH = 3


def export_untrained(recipe: Path | str, path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Writes the teacher of a recipe with random weights.

    Its layers are those of the trained one, and take the same time. Of the data, no more is looked at than how many
    classes there are; without data, there are as many as in ImageNet.

    Args:
        recipe: The recipe's TOML file.
        path: Where the .onnx file goes.
        overrides: Items `table.key=value` that replace keys of the recipe.

    Returns:
        The recipe.

    Raises:
        UsageError: If the recipe cannot be used, or the network cannot be built.
    """
    loaded = load_recipe(Path(recipe), overrides)
    untrained = loaded.teacher.model_copy(update={"weights": NO_WEIGHTS, "train": None, "new_head": False})
    bare = loaded.model_copy(update={"teacher": untrained, "distill": None})
    task: Task = TASKS[bare.task](bare)
    example = task.example_input(_EXPORTED_BATCH)
    network = teacher(bare, task).network
    export(network, example, Path(path), bare.export, input_name=task.input_name, output_name=task.output_name)
    return loaded
