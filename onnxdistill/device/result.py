"""The result of a benchmark: every raw time, what it comes to, and the facts that it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxdistill.device.host import HostFacts
from onnxdistill.device.statistics import Percentiles, Ratio
from onnxdistill.errors import DataError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchSettings:
    """How the models were timed.

    Attributes:
        threads: Threads inside one operator.
        batch: Items per call.
        provider: Full name of the execution provider.
        runs: Timed calls of each model that were asked for; None if a time was asked for.
        seconds: Seconds of timing that were asked for, all models together; None if runs were asked for.
        warmup: Calls before the timing that were asked for; None for until it is steady.
        seed: Of the inputs, the order of the models and the intervals.
        baseline: Name of the model that the others are compared with.
        rounds: In how many rounds all models were timed.
        calls_per_round: Timed calls of each model in a round.
    """

    threads: int
    batch: int
    provider: str
    runs: int | None
    seconds: float | None
    warmup: int | None
    seed: int
    baseline: str
    rounds: int
    calls_per_round: int


@dataclass(frozen=True)
class ModelTiming:
    """How long one model takes.

    Attributes:
        name: As the result calls it.
        path: As it was given.
        size_bytes: The file with its external data.
        sha256: Of the file.
        inputs: Shape of each input by name.
        load_ms: From the file to a session that is ready.
        first_run_ms: The first run, which allocates memory and more.
        warmup_calls: Runs before the timing.
        latency_ms: One run with the whole batch.
        throughput_per_s: Items a second at the median latency, one run after the other.
        speedup: Against the baseline, from rounds that both were timed in; 1 for the baseline itself.
        nodes_by_provider: How many nodes run on which provider, by full name; empty if it is not known.
        shaky: Reasons not to trust these numbers; each is a sentence.
        times_ms: Every timed run, in the order of time.
    """

    name: str
    path: str
    size_bytes: int
    sha256: str
    inputs: dict[str, tuple[int, ...]]
    load_ms: float
    first_run_ms: float
    warmup_calls: int
    latency_ms: Percentiles
    throughput_per_s: float
    speedup: Ratio
    nodes_by_provider: dict[str, int]
    shaky: tuple[str, ...]
    times_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchResult:
    """Models that were timed side by side on one machine.

    Attributes:
        measured_at: UTC, ISO 8601.
        settings: How.
        host: Where.
        models: In the order they were given.
        shaky: Reasons of the machine not to trust any of the numbers; each is a sentence.
    """

    measured_at: str
    settings: BenchSettings
    host: HostFacts
    models: tuple[ModelTiming, ...]
    shaky: tuple[str, ...]

    def __getitem__(self, name: str) -> ModelTiming:
        """The model of that name."""
        return next(model for model in self.models if model.name == name)

    def doubts(self) -> list[str]:
        """Every reason not to trust the numbers; one that several models share is said once."""
        sharing: dict[str, list[str]] = {}
        for model in self.models:
            for reason in model.shaky:
                sharing.setdefault(reason, []).append(model.name)
        return [*self.shaky, *(f"{', '.join(names)}: {reason}" for reason, names in sharing.items())]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {
            "schema_version": SCHEMA_VERSION,
            "measured_at": self.measured_at,
            "settings": dict(self.settings.__dict__),
            "host": self.host.to_json(),
            "shaky": list(self.shaky),
            "models": [_model_to_json(model) for model in self.models],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchResult:
        """The inverse of `to_json`.

        Raises:
            DataError: If the data is of another schema version or is not a benchmark result.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"The benchmark result has schema version {version}; this release reads {SCHEMA_VERSION}.",
                "Read it with the release that wrote it, or measure again.",
            )
        try:
            return cls(
                measured_at=data["measured_at"],
                settings=BenchSettings(**data["settings"]),
                host=HostFacts.from_json(data["host"]),
                models=tuple(_model_from_json(model) for model in data["models"]),
                shaky=tuple(data["shaky"]),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"The benchmark result is damaged: {error}.", "Measure again.") from error


def _model_to_json(model: ModelTiming) -> dict[str, Any]:
    return {
        **model.__dict__,
        "inputs": {name: list(shape) for name, shape in model.inputs.items()},
        "latency_ms": model.latency_ms.to_json(),
        "speedup": model.speedup.to_json(),
        "shaky": list(model.shaky),
        "times_ms": list(model.times_ms),
    }


def _model_from_json(data: Mapping[str, Any]) -> ModelTiming:
    converted = {
        "inputs": {name: tuple(shape) for name, shape in data["inputs"].items()},
        "latency_ms": Percentiles(**data["latency_ms"]),
        "speedup": Ratio(**data["speedup"]),
        "shaky": tuple(data["shaky"]),
        "times_ms": tuple(data["times_ms"]),
    }
    return ModelTiming(**{**data, **converted})
