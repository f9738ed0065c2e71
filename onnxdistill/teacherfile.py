"""The teacher of a recipe as an ONNX file, for what does not depend on its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxdistill.recipe import load_recipe
from onnxdistill.stages.export import export
from onnxdistill.stages.teacher import teacher
from onnxdistill.tasks import TASKS, Task

_EXPORTED_BATCH = 3


def export_untrained(recipe: Path | str, path: Path | str, overrides: Sequence[str] = ()) -> None:
    """Writes the teacher of a recipe with random weights.

    Its layers are those of the trained one, and take the same time. The data is needed for the number of classes.

    Args:
        recipe: The recipe's TOML file.
        path: Where the .onnx file goes.
        overrides: Items `table.key=value` that replace keys of the recipe.

    Raises:
        UsageError: If the recipe or the data cannot be used, or the network cannot be built.
    """
    loaded = load_recipe(Path(recipe), overrides)
    task: Task = TASKS[loaded.task](loaded)
    bare = loaded.teacher.model_copy(update={"weights": "none", "train": None, "new_head": False})
    network = teacher(loaded.model_copy(update={"teacher": bare, "distill": None}), task).network
    export(
        network,
        task.example_input(_EXPORTED_BATCH),
        Path(path),
        loaded.export,
        input_name=task.input_name,
        output_name=task.output_name,
    )
