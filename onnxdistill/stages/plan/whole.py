"""Stage `plan`: spend a latency budget on widths and blocks, by what each of them costs on the target.

In several cuts: each time, channels are scored, the network is traced as it is deployed, and of all widths and blocks
those are taken that let the outputs move the least within the next part of the budget. What is left is repaired, and
its latency is measured: the plan of the next cut begins with that. What was predicted wrong is made up for in the end:
by more cuts, or by a last cut that is made again, less deep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from onnxdistill.device.places import Place
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import ModelFileError, NetworkError, ParityError
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.groups import Narrowed
from onnxdistill.graph.widths import unmatched
from onnxdistill.planning.decisions import Decision
from onnxdistill.planning.problem import EntangledError
from onnxdistill.recipe import PlanTable
from onnxdistill.stages.plan.account import PlannedLayer, account_decisions, account_layers
from onnxdistill.stages.plan.cut import Planner, Remember, Step
from onnxdistill.stages.plan.deployed import Deployed
from onnxdistill.tasks import Task
from onnxdistill.training.validation import best_on_validation

# Cuts after the last one of the recipe, where the latency is still too high.
_MOST_CORRECTIONS = 3
# Of a latency: two measurements of the same file differ by as much.
_FASTER = 0.98
# Of a budget: a last cut that leaves more is made again, since what is left could be channels; and how often.
_UNUSED, _MOST_REPEATS = 0.05, 3

# What a single cut may end with.
_UNUSABLE = (NetworkError, ParityError, ModelFileError)


@dataclass(frozen=True)
class Cut:
    """One of the cuts.

    Attributes:
        budget_ms: What was allowed.
        predicted_ms: What the plan was to take.
        measured_ms: What it takes.
        damage: By how much the outputs were to move.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float
    damage: float


@dataclass(frozen=True)
class PlanResult:
    """The smaller network, and how it came about.

    Attributes:
        network: Trains and exports like any other.
        widths: Channel groups that got narrower.
        blocks: Residual blocks that were left out.
        pairs: Rank of every low-rank pair, by the layer that it stands for.
        cuts: Those that were kept, in their order.
        latency_ms: What a call takes now, as deployed.
        fits: Whether the budget is kept to.
        notes: A sentence each.
        decisions: What became of every choice, and what the other option would have been.
        layers: What became of every layer.
    """

    network: nn.Module
    widths: list[Narrowed]
    blocks: list[str]
    pairs: dict[str, int]
    cuts: list[Cut]
    latency_ms: float
    fits: bool
    notes: list[str]
    decisions: list[Decision]
    layers: list[PlannedLayer]


def plan(
    network: nn.Module,
    task: Task,
    table: PlanTable,
    budget_ms: float,
    deploy: Callable[[nn.Module], Deployed],
    place: Place,
    settings: SessionSettings,
    batch: int = 1,
    keep: Sequence[str] = (),
    tune: Callable[[nn.Module, int], nn.Module] | None = None,
    remember: Remember = lambda _key, decide: decide(),
    on_progress: Callable[[str], None] = lambda _text: None,
) -> PlanResult:
    """Makes a network as fast as asked, with the least damage.

    Args:
        network: Not changed.
        task: Gives calibration samples, and the score on validation.
        table: The recipe's `[plan]`.
        budget_ms: What a call of the deployed student may take.
        deploy: Exports, quantizes and times a network.
        place: Where the deployed student will run.
        settings: How deployed files run.
        batch: Items a call.
        keep: Names of modules that stay, with the blocks that they are in.
        tune: Trains a network that more is to be cut from, after the cut of that number; None for no training.
        remember: Returns what was decided before under a key, or else decides.
        on_progress: Told what is being done.

    Raises:
        NetworkError: If the network cannot be traced, does not run with fewer channels, or has choices that depend on
            each other in too many ways.
    """
    planner = Planner(task, table, place, settings, batch, keep, remember, on_progress)
    course = _Course(network, task, planner, deploy, budget_ms, on_progress)
    for number in range(table.steps + _MOST_CORRECTIONS):
        latency_ms = course.latency_ms
        if latency_ms <= budget_ms:
            break
        # From where the last cut has led, in equal ratios.
        left = max(1, table.steps - number)
        allowed_ms = latency_ms * (budget_ms / latency_ms) ** (1 / left)
        if number >= table.steps and course.cuts:  # by as much as the last plan was too slow
            allowed_ms *= min(1.0, course.cuts[-1].predicted_ms / course.cuts[-1].measured_ms)
        # The last cut is followed by the long training.
        training = tune if number + 1 < table.steps else None
        if not course.go_on(allowed_ms, training):
            break
    course.take_back()
    states, cuts, steps, notes = course.states, course.cuts, course.steps, course.notes
    if table.skip:
        groups = analyse_channels(network, task.example_input(2)).groups
        notes += unmatched("plan.skip", table.skip, network, groups)
    kept = _kept(states, budget_ms, notes)
    current, deployed, cuts, steps = states[kept].network, states[kept].deployed, cuts[:kept], steps[:kept]
    if deployed.latency_ms > budget_ms:
        why = "it has made as many cuts as it makes"
        if course.gave_up:
            why = "the next cut could not be made"
        elif len(states) <= table.steps + _MOST_CORRECTIONS:
            why = "nothing is left to cut that would be faster"
        notes.append(f"plan stopped at {deployed.latency_ms:.3g} ms, above its budget of {budget_ms:.3g} ms: {why}.")
    layers = list[PlannedLayer]()
    if steps:
        layers = account_layers(steps[0].layers, steps[-1].layers, planner.layers(current, deployed))
    return PlanResult(
        network=current,
        widths=_widths(network, current, task),
        blocks=[block for step in steps for block in step.blocks],
        pairs={layer.name: layer.rank for layer in layers if layer.rank is not None},
        cuts=cuts,
        latency_ms=deployed.latency_ms,
        fits=deployed.latency_ms <= budget_ms,
        notes=notes,
        decisions=account_decisions(step.decisions for step in steps),
        layers=layers,
    )


@dataclass(frozen=True)
class _State:
    network: nn.Module
    deployed: Deployed


class _Course:
    """What a plan has made so far.

    Attributes:
        states: The whole network, and what every cut has left.
        cuts: One less.
        steps: The same with their networks.
        gave_up: Whether a cut could not be made, though there was one.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        planner: Planner,
        deploy: Callable[[nn.Module], Deployed],
        budget_ms: float,
        say: Callable[[str], None],
    ) -> None:
        self._task = task
        self._planner = planner
        self._deploy = deploy
        self._budget_ms = budget_ms
        self._say = say
        self.states = [_State(network, deploy(network))]
        self.cuts: list[Cut] = []
        self.steps: list[Step] = []
        self.gave_up = False
        self._afterwards: list[str] = []

    @property
    def latency_ms(self) -> float:
        """Of what is left."""
        return self.states[-1].deployed.latency_ms

    @property
    def notes(self) -> list[str]:
        """A sentence each."""
        found = list[str]()
        for number, (cut, step) in enumerate(zip(self.cuts, self.steps, strict=True), 1):
            found.append(
                f"plan, cut {number}: {cut.predicted_ms:.3g} ms predicted, {cut.measured_ms:.3g} ms measured, of "
                f"{cut.budget_ms:.3g} ms allowed."
            )
            found += [f"plan, cut {number}, was planned with times to doubt. {doubt}" for doubt in step.doubts]
        return [*found, *self._afterwards]

    def go_on(self, allowed_ms: float, tune: Callable[[nn.Module, int], nn.Module] | None) -> bool:
        """Makes a cut, and trains what is left if that is still too slow; says whether there was anything to cut."""
        network = self.states[-1].network
        try:
            step = self._planner.step(network, self.states[-1].deployed, allowed_ms)
            if step is None:
                return False
            state = self._timed(step.network, "timing what is left")
        except (EntangledError, *_UNUSABLE) as error:
            if self.cuts:
                self._afterwards.append(f"plan gave up its cut {len(self.cuts) + 1}, and kept those before it. {error}")
                self.gave_up = True
                return False
            if not isinstance(error, EntangledError):
                raise
            raise NetworkError(
                f"The choices that {type(network).__name__} offers are too entangled to plan: {error}.",
                "Leave out --speedup, --latency-ms and [plan], and say how much goes with [prune].",
            ) from error
        if tune is not None and state.deployed.latency_ms > self._budget_ms:
            # The next cut reads the weights off this file.
            state = self._trained(state, tune)
        self._add(step, allowed_ms, state)
        return True

    def _trained(self, state: _State, tune: Callable[[nn.Module, int], nn.Module]) -> _State:
        """The same, trained; or as it is, if that cannot be deployed."""
        number = len(self.cuts) + 1
        network = tune(state.network, number)
        try:
            trained = self._timed(network, "timing what was trained")
        except _UNUSABLE as error:
            self._afterwards.append(f"plan goes on without the training after its cut {number}. {error}")
            return state
        state.deployed.discard()
        return trained

    def take_back(self) -> None:
        """Makes the last cut again, less deep, if it went so much further than it had to that it can be told.

        What it leaves then is kept if it fits, and scores no worse on validation: damages are predicted one by one.
        """
        aim_ms = (1 - _UNUSED / 2) * self._budget_ms
        wanted_ms: float | None = None
        for _ in range(_MOST_REPEATS):
            if not self.cuts or self.latency_ms >= (1 - _UNUSED) * self._budget_ms:
                break
            before, cut = self.states[-2], self.cuts[-1]
            # By as much as the plan turned out faster than predicted; but less than what takes no cut at all.
            halfway_ms = (cut.predicted_ms * before.deployed.latency_ms) ** 0.5
            allowed_ms = (
                min(cut.predicted_ms * aim_ms / self.latency_ms, halfway_ms) if wanted_ms is None else wanted_ms
            )
            try:
                step = self._planner.step(before.network, before.deployed, allowed_ms)
                if step is not None and step.damage >= cut.damage:
                    break
                state = None if step is None else self._timed(step.network, "timing what is left")
            except (EntangledError, *_UNUSABLE):  # what there is will do
                break
            if step is None or state is None or state.deployed.latency_ms > self._budget_ms:
                wanted_ms = (allowed_ms * cut.predicted_ms) ** 0.5
                if state is not None:
                    state.deployed.discard()
                continue
            if self._is_worse(state.network):
                state.deployed.discard()
                break
            unused = 1 - self.latency_ms / self._budget_ms
            self._afterwards.append(
                f"plan made cut {len(self.cuts)} again, since it had left {unused:.0%} of the budget: from "
                f"{cut.measured_ms:.3g} ms to {state.deployed.latency_ms:.3g} ms."
            )
            self.states[-1].deployed.discard()
            del self.states[-1], self.cuts[-1], self.steps[-1]
            self._add(step, allowed_ms, state)
            wanted_ms = None

    def _is_worse(self, again: nn.Module) -> bool:
        now = self.states[-1].network
        return self._task.measurable and best_on_validation([again, now], self._task) is now

    def _timed(self, network: nn.Module, what: str) -> _State:
        self._say(what)
        return _State(network, self._deploy(network))

    def _add(self, step: Step, allowed_ms: float, state: _State) -> None:
        self.states.append(state)
        self.steps.append(step)
        self.cuts.append(Cut(allowed_ms, step.predicted_ms, state.deployed.latency_ms, step.damage))
        # Looked at again are the last one, what its cut was made of, and whatever is as fast as any; see `_kept`.
        fastest_ms = min(one.deployed.latency_ms for one in self.states)
        for one in self.states[:-2]:
            if one.deployed.latency_ms > fastest_ms / _FASTER:
                one.deployed.discard()


def _kept(states: Sequence[_State], budget_ms: float, notes: list[str]) -> int:
    """After how many cuts the budget is kept to, or else nothing that follows is measurably faster."""
    latencies = [state.deployed.latency_ms for state in states]
    enough_ms = max(budget_ms, min(latencies) / _FASTER if min(latencies) > budget_ms else 0.0)
    kept = next(cuts for cuts, latency_ms in enumerate(latencies) if latency_ms <= enough_ms)
    if kept + 1 < len(states):
        what = f"what cut {kept} had left" if kept else "the whole network"
        notes.append(f"plan went back to {what}: nothing after it was measured to be faster.")
    return kept


def _widths(before: nn.Module, after: nn.Module, task: Task) -> list[Narrowed]:
    """The groups that are narrower than they were; those of blocks that have gone are not among them."""
    example, layers = task.example_input(2), dict(before.named_modules())

    def known_as(name: str) -> str:
        # Of a pair, the second layer gives the channels that were the whole layer's.
        while name not in layers and name.endswith(".1"):
            name = name.removesuffix(".1")
        return name

    left = {known_as(group.name): group.size for group in analyse_channels(after, example).groups}
    return [
        Narrowed(group.name, group.size, left[group.name], group.layers)
        for group in analyse_channels(before, example).groups
        if left.get(group.name, group.size) < group.size
    ]
