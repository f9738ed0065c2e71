"""Items of `--set`, as far as they can be read without a recipe."""

from __future__ import annotations

import tomllib
from typing import Any


def keys_given(item: str) -> list[str]:
    """The keys that an item gives values to, in full: those of a whole table, if it is one; none if it deletes."""
    key, _, text = item.partition("=")
    if not text.strip():
        return []
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # a bare string
        value = text
    return _keys_in(key.strip(), value)


def _keys_in(key: str, value: Any) -> list[str]:  # whatever TOML has
    if not isinstance(value, dict) or not value:
        return [key]
    return [found for name, inner in value.items() for found in _keys_in(f"{key}.{name}", inner)]
