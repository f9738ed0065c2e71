"""Reading a recipe: the file, the overrides of the command line, and what the paths in both are relative to."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from onnxdistill.errors import RecipeError
from onnxdistill.recipe.messages import explained
from onnxdistill.recipe.onnxalone import OnnxRecipe
from onnxdistill.recipe.weights import NO_WEIGHTS, OWN_WEIGHTS
from onnxdistill.recipe.whole import Recipe

Checked = TypeVar("Checked", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The TOML file.
        overrides: Items `table.key=value`, the value in TOML or, failing that, a bare string.

    Raises:
        RecipeError: One message with every error of the file.
    """
    tables = _read(path)
    final = copy.deepcopy(tables)
    for item in overrides:
        _override(final, item)
    _anchor_paths(tables, path.parent.absolute(), final)
    for item in overrides:
        _override(tables, item)
    _anchor_paths(tables, Path.cwd(), final)  # those of the overrides; absolute ones stay
    return _validated(Recipe, tables, f"{path} is not a valid recipe")


def onnx_recipe(model: Path, data: Path, overrides: Sequence[str] = ()) -> OnnxRecipe:
    """What is asked of an ONNX file alone.

    Args:
        model: The float ONNX file.
        data: Samples for its inputs.
        overrides: Items `table.key=value`, as for a recipe.

    Raises:
        RecipeError: One message with everything that is wrong with the overrides.
    """
    here = Path.cwd()
    tables: dict[str, Any] = {
        "name": model.stem,
        "onnx": _anchored(str(model), here),
        "data": {"path": _anchored(str(data), here)},
        "quantize": {"epochs": 0},
    }
    for item in overrides:
        _override(tables, item)
    return _validated(OnnxRecipe, tables, "What is asked of the ONNX file is not valid")


def _validated(kind: type[Checked], tables: dict[str, Any], complaint: str) -> Checked:
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        found = [explained(detail, kind) for detail in error.errors()]
        listed = found if len(found) == 1 else [f"({number}) {text}" for number, text in enumerate(found, 1)]
        raise RecipeError(f"{complaint}: {'; '.join(listed)}.", "Correct it.") from error


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, not a recipe.", f"Name the file, such as {path / 'recipe.toml'}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin with a mark
    except FileNotFoundError as error:
        raise RecipeError(f"The recipe {path} does not exist.", "Correct the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.", "It has to be a text file.") from error
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of too many digits
        raise RecipeError(f"The recipe {path} is not valid TOML: {error}.", "Correct that line.") from error


def _anchor_paths(tables: dict[str, Any], folder: Path, final: dict[str, Any]) -> None:
    """Makes paths absolute; what they are for is seen in the final tables."""
    data = tables.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = _anchored(data["root"], folder)
    in_the_end = _networks_of(final)
    for place, network in _networks_of(tables).items():
        name = _inner(in_the_end.get(place, network), "network")
        for key in ("weights", "network"):
            value = _inner(network, key)
            if isinstance(value, str) and _is_path(key, value, name):
                network[key] = _anchored(value, folder)


def _networks_of(tables: dict[str, Any]) -> dict[tuple[str, int], Any]:
    """The tables that name networks, by their place."""
    teacher = tables.get("teacher")
    further = {"teacher.train": _inner(teacher, "train"), "distill": tables.get("distill")}
    return {("teacher", 0): teacher} | {
        (name, number): network for name, table in further.items() for number, network in enumerate(_teachers_of(table))
    }


def _inner(table: Any, key: str) -> Any:  # anything, as long as it isn't validated
    return table.get(key) if isinstance(table, dict) else None


def _teachers_of(training: Any) -> list[Any]:
    teachers = _inner(training, "teachers")
    return teachers if isinstance(teachers, list) else []


def _anchored(path: str, folder: Path) -> str:
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError as error:
        raise RecipeError(f"The path {path} starts with a home folder that isn't known.", "Write it out.") from error


def _is_path(key: str, value: str, network: Any) -> bool:
    if key == "network":
        return ".py:" in value
    if value in (NO_WEIGHTS, OWN_WEIGHTS):
        return False
    is_torchvisions = isinstance(network, str) and network.startswith("torchvision:")
    return not is_torchvisions or "/" in value or "." in value


def _override(tables: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {item!r} is not of the form table.key=value.", "Write for example bench.threads=2.")
    *parents, last = key.strip().split(".")
    table: Any = tables
    for parent in parents:
        if text.strip() == "" and isinstance(table, dict) and parent not in table:
            return  # what is not there need not be deleted, and its table would mean something
        table = _within(table, parent, item)
    if isinstance(table, list):
        raise RecipeError(
            f"--set {item!r}: that is a list.", "Write all of it, or one key, as in distill.teachers.0.weights=a.pt."
        )
    if text.strip() == "":
        table.pop(last, None)
        return
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        table[last] = text


def _within(table: Any, key: str, item: str) -> Any:
    """A table in a table, which is made if it is not there, or in a list of them."""
    if isinstance(table, list):
        if not key.isdecimal() or int(key) >= len(table):
            raise RecipeError(f"--set {item!r}: there is no {key!r} in a list of {len(table)}.", "They begin with 0.")
        child = table[int(key)]
    elif key.isdecimal() and key not in table:
        raise RecipeError(
            f"--set {item!r}: there is no list that {key!r} could be of.",
            'Write all of it, as in distill.teachers=[{network="n.py:build", weights="a.pt"}].',
        )
    else:
        child = table.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {item!r}: {key!r} is a value, not a table.", "Name a key of a table.")
    return child
