"""What a wrong recipe is answered with: the key, and what is wrong with it."""

from __future__ import annotations

import difflib
import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel


def explained(detail: Any, recipe: type[BaseModel]) -> str:  # pydantic's ErrorDetails
    """One thing that is wrong with a recipe, without a full stop.

    Args:
        detail: What pydantic says.
        recipe: The kind of recipe, for the keys that it has.
    """
    place = ".".join(str(part) for part in detail["loc"]) or "the recipe"
    match detail["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key{_nearest_key(detail['loc'], recipe)}"
        case "missing" if place == "distill.epochs" and "minutes" in detail["input"]:
            return (
                "distill.epochs: missing; a time budget (--time-budget or distill.minutes) needs a [distill] table, "
                "with the epochs that it does at the most"
            )
        case "missing":
            return f"{place}: missing"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return f"{place} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _nearest_key(location: tuple[int | str, ...], recipe: type[BaseModel]) -> str:
    table = recipe
    for part in location[:-1]:
        if isinstance(part, int):  # the place in a list
            continue
        table = table_type(table.model_fields[str(part)].annotation) or table
    close = difflib.get_close_matches(str(location[-1]), table.model_fields, n=1, cutoff=0.0)
    return f", the nearest valid one is {close[0]!r}; known here are {', '.join(table.model_fields)}"


def table_type(annotation: Any) -> type[BaseModel] | None:  # a typing construct
    """The table that a key of a recipe holds, optional or not, or a list of; None if it holds a value."""
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((found for arg in get_args(annotation) if (found := table_type(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
