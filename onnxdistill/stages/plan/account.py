"""What a plan made of every choice and of every layer, over all of its cuts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxdistill.planning.decisions import Decision


@dataclass(frozen=True)
class LayerState:
    """A layer as it was at some time.

    Attributes:
        operation: Precision, kernel and sizes, in words.
        inputs: Channels that go in.
        outputs: Channels that come out.
        time_ms: What it takes in the network as deployed; None if that could not be seen.
        planned_ms: What it was to take after the cut; None if it was to go.
    """

    operation: str
    inputs: int
    outputs: int
    time_ms: float | None
    planned_ms: float | None = None


@dataclass(frozen=True)
class PlannedLayer:
    """A layer before and after all cuts.

    Attributes:
        name: Of the module.
        operation: What it was.
        channels_before: In and out.
        channels_after: In and out, of a pair those around it; None if the layer has gone.
        rank: Between the two layers of the pair that it has become; None if it has not.
        before_ms: What it took in the whole network as deployed; None if that could not be seen.
        predicted_ms: What it was to take after the last cut; None if it was to go.
        after_ms: What it takes; None if it has gone, or could not be seen.
    """

    name: str
    operation: str
    channels_before: tuple[int, int]
    channels_after: tuple[int, int] | None
    rank: int | None
    before_ms: float | None
    predicted_ms: float | None
    after_ms: float | None


def account_layers(
    before: Mapping[str, LayerState], last: Mapping[str, LayerState], after: Mapping[str, LayerState]
) -> list[PlannedLayer]:
    """Follows layers by the names of their modules.

    Args:
        before: The whole network's.
        last: Those before the last cut, with what was planned.
        after: Those that are left.
    """
    return [_layer(name, state, _parts(name, last), _parts(name, after)) for name, state in before.items()]


def _layer(name: str, state: LayerState, last: Sequence[LayerState], now: Sequence[LayerState]) -> PlannedLayer:
    planned = [part.planned_ms for part in last if part.planned_ms is not None]
    return PlannedLayer(
        name=name,
        operation=state.operation,
        channels_before=(state.inputs, state.outputs),
        channels_after=(now[0].inputs, now[-1].outputs) if now else None,
        rank=now[0].outputs if len(now) > 1 else None,
        before_ms=state.time_ms,
        predicted_ms=sum(planned) if planned else None,
        after_ms=_sum(part.time_ms for part in now) if now else None,
    )


def _parts(name: str, states: Mapping[str, LayerState]) -> list[LayerState]:
    """The layer, or the layers of the pair in its place."""
    return [state for other, state in states.items() if other == name or other.startswith(f"{name}.")]


def _sum(times_ms: Iterable[float | None]) -> float | None:
    known = list(times_ms)
    return None if None in known else sum(time_ms for time_ms in known if time_ms is not None)


def account_decisions(cuts: Iterable[Sequence[Decision]]) -> list[Decision]:
    """What was decided on every choice, from before the first cut to after the last one.

    The other option is that of the cut in which the choice was last changed, or else of the last one.
    """
    found: dict[tuple[str, str], Decision] = {}
    for decisions in cuts:
        for now in decisions:
            known = found.get((now.kind, now.name))
            if known is None:
                found[now.kind, now.name] = now
                continue
            speaks = now if now.before != now.after or known.before == known.after else known
            found[now.kind, now.name] = replace(
                speaks, before=known.before, after=now.after, damage=known.damage + now.damage
            )
    return list(found.values())
