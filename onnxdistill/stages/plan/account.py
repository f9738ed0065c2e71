"""What a plan made of every choice and of every layer, over all of its cuts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxdistill.planning.decisions import Decision, Kind


@dataclass(frozen=True)
class LayerState:
    """A layer as it was at some time.

    Attributes:
        operation: Precision, kernel and sizes, in words.
        inputs: Channels that go in.
        outputs: Channels that come out.
        time_ms: What it takes in the network as deployed; None if that could not be seen.
        planned_ms: What it was to take after the cut: so many times `time_ms` as the device profile says; None if it
            was to go.
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


def _layer(name: str, state: LayerState, last: Mapping[str, LayerState], now: Mapping[str, LayerState]) -> PlannedLayer:
    planned = [part.planned_ms for part in last.values() if part.planned_ms is not None]
    parts = list(now.values())
    # The first layer of a pair may have become one itself.
    narrowest = [part.outputs for other, part in now.items() if other.startswith(f"{name}.0")]
    return PlannedLayer(
        name=name,
        operation=state.operation,
        channels_before=(state.inputs, state.outputs),
        channels_after=(parts[0].inputs, parts[-1].outputs) if parts else None,
        rank=narrowest[-1] if narrowest and len(parts) > 1 else None,
        before_ms=state.time_ms,
        predicted_ms=sum(planned) if planned else None,
        after_ms=total(part.time_ms for part in parts) if parts else None,
    )


def _parts(name: str, states: Mapping[str, LayerState]) -> dict[str, LayerState]:
    """The layer, or the layers of the pair in its place, in their order."""
    parts = sorted(other for other in states if other == name or other.startswith(f"{name}."))
    return {other: states[other] for other in parts}


def total(times_ms: Iterable[float | None]) -> float | None:
    """All times together; None if one is not known."""
    known = list(times_ms)
    return None if None in known else sum(time_ms for time_ms in known if time_ms is not None)


def done(decisions: Iterable[Decision], widths: Mapping[str, int], ranks: Mapping[str, int]) -> list[Decision]:
    """What a cut did of what was decided.

    A group may have become another one with the blocks that went, or a layer may have become too narrow for its pair.

    Args:
        decisions: What was decided.
        widths: Of the groups that were cut.
        ranks: Of the pairs that were made, by the layer.
    """
    found = []
    for decision in decisions:
        reached = {"width": widths, "pair": ranks, "block": {decision.name: decision.after}}[decision.kind]
        after = reached.get(decision.name, decision.before)
        same = after == decision.after
        found.append(decision if same else Decision(decision.kind, decision.name, decision.before, after, 0.0))
    return found


def account_decisions(cuts: Iterable[Sequence[Decision]]) -> list[Decision]:
    """What was decided on every choice, from before the first cut to after the last one.

    The other option is that of the cut in which the choice was last changed, or else of the last one. Nothing is told
    of what lies in blocks that have gone.
    """
    found: dict[tuple[Kind, str], Decision] = {}
    for decisions in cuts:
        pairs = {name for (kind, name), one in found.items() if kind == "pair" and one.after}
        for now in decisions:
            kind, name = key = _known_as(now, pairs)
            known = found.get(key)
            if known is None:
                found[key] = replace(now, kind=kind, name=name)
                continue
            speaks = now if now.before != now.after or known.before == known.after else known
            damage = known.damage + now.damage
            found[key] = replace(speaks, kind=kind, name=name, before=known.before, after=now.after, damage=damage)
    gone = tuple(f"{name}." for (kind, name), one in found.items() if kind == "block" and not one.after)
    return [one for (kind, name), one in found.items() if kind == "block" or not name.startswith(gone)]


def _known_as(decision: Decision, pairs: Collection[str]) -> tuple[Kind, str]:
    """A layer's channels are those of the second layer of its pair, and the rank those of the first one."""
    kind, name = decision.kind, decision.name
    while kind == "width":
        layer, _, place = name.rpartition(".")
        if layer not in pairs or place not in ("0", "1"):
            break
        kind, name = ("pair" if place == "0" else "width"), layer
    return kind, name
