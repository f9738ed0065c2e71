"""The profile of this machine for the layers of some models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnxdistill.device.cases import Case, name_models
from onnxdistill.device.costs.deviceprofile import ROUNDS, DeviceProfile, profile_device
from onnxdistill.device.costs.layers import Layer, LayerKind, Precision, read_exported
from onnxdistill.device.feeds import InputSource
from onnxdistill.device.runtime import usable_provider
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import UsageError

_AS_EXPORTED = SessionSettings(optimization_level="disabled")

PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

OnProgress = Callable[[str, float, float], None]
"""Gets a kind of layers, and how many kinds have been measured, of how many."""


def profile_models(
    models: Sequence[Path | str] | Mapping[str, Path | str],
    *,
    threads: int = 1,
    batch: int = 1,
    provider: str = "cpu",
    precisions: Sequence[Precision] | None = None,
    step: int = 8,
    shapes: Mapping[str, Sequence[int]] | None = None,
    cached: bool = True,
    fresh: bool = False,
    on_progress: OnProgress | None = None,
) -> DeviceProfile:
    """Measures the layers of models, and narrower ones, on this machine.

    Args:
        models: Files, in float or with Q/DQ pairs.
        threads: Threads inside one operator.
        batch: Items per call.
        provider: Short or full name of the execution provider.
        precisions: What layers are measured in; if left out, in both on the CPU, and elsewhere in float32. Transposed
            convolutions have no kernel for int8.
        step: Widths will be whole multiples of it, or what they are now.
        shapes: Whole shapes by input name, where a model leaves more open than the batch.
        cached: Take what was measured here before, and keep what is measured now.
        fresh: Measure all of it again.
        on_progress: See `OnProgress`.

    Returns:
        The times of these layers.

    Raises:
        UsageError: If a model has no layers, or none of these precisions; if a shape is missing, or if a number makes
            no sense.
        ModelFileError: If ONNX Runtime cannot load or run a model.
        ProviderError: If the provider is unknown or not usable here.
    """
    if batch < 1:
        raise UsageError(f"A batch has at least 1 item, and {batch} were asked for.")
    if step < 1:
        raise UsageError(f"Widths are multiples of at least 1, and {step} was asked for.")
    settings = SessionSettings(threads=threads, provider=provider)
    if precisions is None:
        precisions = PRECISIONS if usable_provider(provider) == "CPUExecutionProvider" else PRECISIONS[:1]
    cases = [Case(name, path, _AS_EXPORTED, batch) for name, path in name_models(models).items()]
    sessions = [open_session(case.path, _AS_EXPORTED) for case in cases]
    source = InputSource(shapes or {}, None, 0)
    source.check_shapes_used(sessions)
    layers: list[Layer] = []
    for case, session in zip(cases, sessions, strict=True):
        found = read_exported(case.path, source.feeds(case, session)).layers
        if not found:
            raise UsageError(
                f"{case.path} has neither convolutions nor products with weights.", "There is nothing to measure."
            )
        layers += [
            replace(one, kind=replace(one.kind, precision=other))
            for one in found
            for other in precisions
            if other in one.kind.precisions
        ]
    if not layers:
        raise UsageError(f"None of the layers is computed in {' or '.join(precisions)}.", "Measure them in float32.")
    profile = profile_device(layers, settings, step, on_kind=_told(layers, on_progress), cached=cached, fresh=fresh)
    kinds = {layer.kind for layer in layers}
    return replace(profile, surfaces={kind: one for kind, one in profile.surfaces.items() if kind in kinds})


def _told(layers: Sequence[Layer], on_progress: OnProgress | None) -> Callable[[LayerKind, int], None] | None:
    if on_progress is None:
        return None
    total = ROUNDS * len({layer.kind for layer in layers})
    done: list[LayerKind] = []

    def on_kind(kind: LayerKind, _widths: int) -> None:
        on_progress(str(kind), float(len(done)), float(total))
        done.append(kind)

    return on_kind
