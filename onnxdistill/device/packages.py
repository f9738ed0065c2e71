"""Which Python distributions are installed, read from their metadata without importing them."""

from __future__ import annotations

import re
from importlib import metadata

# Owners of other folders, whose names begin like those of the packages that own `onnxruntime/`.
_NEIGHBOURS = frozenset({"onnxruntime-extensions", "onnxruntime-tools", "onnxruntime-genai"})


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def runtime_distributions() -> dict[str, str]:
    """Name and version of every installed distribution that owns the folder `onnxruntime`, by name.

    More than one is a fault: they overwrite each other's files.
    """
    owners = {}
    for distribution in metadata.distributions():
        # An installation that was ended on the way leaves folders without a name.
        name = normalized(distribution.metadata["Name"] or "")
        if name.startswith(("onnxruntime", "ort-nightly")) and not name.startswith(tuple(_NEIGHBOURS)):
            owners[name] = distribution.version
    return dict(sorted(owners.items()))


def version_of(name: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def extra_distributions(package: str, extra: str) -> list[str]:
    """Names of the distributions that an extra of an installed package brings; empty without the extra."""
    try:
        requirements = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    marker = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    return [_requirement_name(text) for text in requirements if marker.search(text)]


def exact_requirement(package: str, needed: str) -> str | None:
    """The version that an installed package pins of another one with `==`; None if it pins none."""
    for text in metadata.requires(package) or []:
        if normalized(_requirement_name(text)) == normalized(needed):
            pin = re.search(r"==\s*([\w.!+]+)", text.partition(";")[0])
            return pin[1] if pin else None
    return None


def _requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
    return match[0] if match else requirement
