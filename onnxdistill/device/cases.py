"""What is timed: every model in every setting that was asked for, with a name and with what it is compared to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onnxdistill.device.runtime import full_name, short_name
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import UsageError

_T = TypeVar("_T", bound=int | str)


@dataclass(frozen=True)
class Case:
    """A model in the settings that it is timed in.

    Attributes:
        model: Name of the model.
        path: Its file.
        settings: Of the session.
        batch: Items per call.
    """

    model: str
    path: Path
    settings: SessionSettings
    batch: int = 1


def several(value: _T | Sequence[_T]) -> list[_T]:
    """One value, or several, each once.

    Raises:
        UsageError: If there is none.
    """
    values = [value] if isinstance(value, int | str) else list(dict.fromkeys(value))
    if not values:
        raise UsageError("A setting has no value.")
    return values


def name_models(models: Sequence[Path | str] | Mapping[str, Path | str]) -> dict[str, Path]:
    """Names that tell the files apart: the stem, else with its folder, else with a number.

    Raises:
        UsageError: If there is no file.
    """
    if isinstance(models, Mapping):
        named = {name: Path(path) for name, path in models.items()}
    else:
        paths = [Path(path) for path in models]
        stems = Counter(path.stem for path in paths)
        named = {}
        for path in paths:
            name = path.stem if stems[path.stem] == 1 else f"{path.absolute().parent.name}/{path.stem}"
            number = 1 + sum(known.partition(" #")[0] == name for known in named)
            named[name if number == 1 else f"{name} #{number}"] = path
    if not named:
        raise UsageError("There is no model to time.", "Name at least one .onnx file.")
    return named


def options_by_provider(
    options: Mapping[str, Mapping[str, str]], providers: Sequence[str]
) -> dict[str, Mapping[str, str]]:
    """The options of each provider that was asked for, by its full name.

    Raises:
        ProviderError: If a provider is unknown.
        UsageError: If there are options of a provider that was not asked for, or that takes none.
    """
    wanted = [full_name(provider) for provider in providers]
    given = {full_name(provider): values for provider, values in options.items()}
    if unused := given.keys() - set(wanted):
        name = short_name(min(unused))
        raise UsageError(
            f"There are options of the provider {name!r}, which is not asked for.", f"Add --provider {name}."
        )
    if ignored := given.get(full_name("cpu")):
        raise UsageError(
            f"The provider 'cpu' takes no options, and {', '.join(map(repr, ignored))} would be ignored.",
            "Leave them out; --threads and --opt-level say how it runs.",
        )
    return {full: given.get(full, {}) for full in wanted}


def combine(paths: Mapping[str, Path], settings: Sequence[SessionSettings], batches: Sequence[int]) -> dict[str, Case]:
    """Every model in every setting, named by what of the setting others do not share.

    Raises:
        UsageError: If a batch is below 1.
    """
    for batch in batches:
        if batch < 1:
            raise UsageError(f"A batch has at least 1 item, and {batch} were asked for.")
    cases = {}
    for (model, path), one, batch in itertools.product(paths.items(), settings, batches):
        parts = [model]
        if len({other.threads for other in settings}) > 1:
            parts.append(f"{one.threads} thread{'s' if one.threads > 1 else ''}")
        if len(batches) > 1:
            parts.append(f"batch {batch}")
        if len({other.provider for other in settings}) > 1:
            parts.append(short_name(one.provider))
        if len({other.optimization_level for other in settings}) > 1:
            parts.append(one.optimization_level)
        cases[", ".join(parts)] = Case(model, path, one, batch)
    return cases


def baselines(cases: Mapping[str, Case], model: str) -> dict[str, str]:
    """Per case the one that it is compared with.

    Args:
        cases: By name.
        model: The one that others are compared with, in the same setting. If there is no other, all settings are
            compared with the first one.
    """
    if len({case.model for case in cases.values()}) == 1:
        return dict.fromkeys(cases, next(iter(cases)))
    known = [(case.settings, case.batch, name) for name, case in cases.items() if case.model == model]
    return {
        name: next(other for settings, batch, other in known if (settings, batch) == (case.settings, case.batch))
        for name, case in cases.items()
    }
