"""Channel groups read off a network: which slices of which parameters have to be removed together.

They are read off the same `torch.export` graph that the ONNX exporter uses. Every value in the graph carries a label
that names an *atom* for each index; an atom is born as an output channel of a layer, flows through the graph, and
collects the slices of parameters that it meets. Where two atoms meet (a residual sum), they become one. The
dependency itself is that of Fang et al. 2023, "DepGraph", section 3; deriving it from index labels instead of from
layer types needs no list of supported models.

An operator without a rule freezes the atoms that touch it, and so does an output of the network: a frozen channel is
never removed. What remains is cut on trial and compared with the network in which the same channels are silent
(`graph.proof`): code that cannot do with other sizes freezes what it touches, too. The analysis tells what froze
which layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from onnxdistill.errors import NetworkError, is_of_memory
from onnxdistill.graph.cores import PREFIX, Core, core_of
from onnxdistill.graph.groups import (
    ChannelAnalysis,
    ChannelGroup,
    Freeze,
    Kind,
    Member,
    ScaledByWidth,
    SizeInCode,
)
from onnxdistill.graph.labels import CONSTANT, Atoms, Label
from onnxdistill.graph.proof import Failure, prove
from onnxdistill.graph.rules import PRODUCTS, RULES, Walk
from onnxdistill.graph.rules.walk import operator_name

__all__ = ["ChannelAnalysis", "ChannelGroup", "Freeze", "Member", "analyse_channels"]

Slices = dict[int, dict[tuple[str, int], Label]]
"""For every atom, the indices that it has in every dimension of every tensor."""

CODE = "the code of"


def analyse_channels(network: nn.Module, example: Tensor) -> ChannelAnalysis:
    """Reads the channel groups off a network, and proves them on an example.

    Args:
        network: Maps a tensor to a tensor (or a tuple or dict of tensors), or is a detector of torchvision's; not
            changed.
        example: An input `[N, ...]` with N > 1.

    Raises:
        NetworkError: If `torch.export` cannot trace the network.
    """
    _refuse_computed_tensors(network)
    core = core_of(network)
    programs = _programs(core, example)
    walked = [_Walked(programs, whole_heads=False)]
    if any(operator_name(node) in PRODUCTS for program in programs for node in program.graph.nodes):
        walked.append(_Walked(programs, whole_heads=True))
    return _proven(network, example, walked)


def _refuse_computed_tensors(network: nn.Module) -> None:
    """No copy can be made of a module that keeps a result of autograd."""
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise NetworkError(
                    f"{type(network).__name__} keeps a computed tensor, {f'{path}.' if path else ''}{name}.",
                    "If it is from torch.nn.utils.weight_norm, use torch.nn.utils.parametrizations.weight_norm, or "
                    "torch.nn.utils.remove_weight_norm before pruning.",
                )


class _Walked:
    """The walks over all programs of a network, of one kind."""

    def __init__(self, programs: list[ExportedProgram], whole_heads: bool) -> None:
        self.kind: Kind = "heads" if whole_heads else "channels"
        self.atoms = Atoms()
        self.walks = [Walk(program, self.atoms, whole_heads) for program in programs]
        for walk in self.walks:
            walk.run(RULES)

    def groups(self, slices: Slices) -> list[ChannelGroup]:
        frozen = _frozen(self.atoms)
        wanted = slices
        if self.kind == "heads":
            heads = {int(root) for walk in self.walks for label in walk.heads for root in self.atoms.roots(label).flat}
            # A head of one dimension is that dimension, which is among the channels already.
            wanted = {
                root: members
                for root, members in slices.items()
                if root in heads and root not in frozen and max(map(len, members.values())) > 1
            }
        return _groups(wanted, frozen, self.kind)

    def slices(self) -> Slices:
        return _slices(self.atoms)

    def freezes(self, slices: Slices) -> list[Freeze]:
        seen: dict[Freeze, None] = {}
        for entry in self.atoms.frozen:
            roots = dict.fromkeys(self.atoms.roots(entry.atoms).tolist())
            layers = dict.fromkeys(_layer(next(iter(slices[root]))[0]) for root in roots if root in slices)
            seen[Freeze(entry.operator, tuple(layers))] = None
        return list(seen)

    def sizes(self) -> Iterator[SizeInCode]:
        for walk in self.walks:
            for size in walk.code_sizes:
                label = self.atoms.roots(size.label)
                yield SizeInCode(_path(size.module), self.kind, label, size.shape, size.node)

    def scalings(self) -> Iterator[ScaledByWidth]:
        for walk in self.walks:
            for scaling in walk.scalings:
                if not _may_come_from_a_width(scaling.factor, scaling.shape):
                    continue
                producers = {_bare(tensor): rows for tensor, rows in scaling.producers.items()}
                roots = self.atoms.roots(scaling.label)
                yield ScaledByWidth(scaling.node, roots, scaling.shape, scaling.factor, producers)

    def settle_with(self, module: str) -> bool:
        """Ties what a module's code reshapes to the width of its input with that input. False if there is nothing."""
        changed = False
        for walk in self.walks:
            inputs = [entry.label for entry in walk.entries if _near(_path(entry.module), module)]
            for size in walk.code_sizes:
                if _path(size.module) != module:
                    continue
                label = size.label.reshape(-1) if size.label.size in size.shape else None
                for other in inputs:
                    if label is not None and len(other) == len(label) > 1 and self._differ(label, other):
                        self.atoms.unite(label, other, f"{CODE} {module}")
                        changed = True
        self.atoms.settle()
        return changed

    def _differ(self, one: Label, other: Label) -> bool:
        return not np.array_equal(self.atoms.roots(one), self.atoms.roots(other))

    def freeze_module(self, module: str, operator: str) -> bool:
        """Freezes the sizes in a module's code, or else what enters it, or else its parameters. False if none do."""
        sizes = [size.label for walk in self.walks for size in walk.code_sizes if _path(size.module) == module]
        entries = [entry.label for walk in self.walks for entry in walk.entries if _near(_path(entry.module), module)]
        own = [label for (tensor, _), label in self.atoms.bindings.items() if _layer(tensor) == module]
        for labels in (sizes, entries, own):
            before = _frozen(self.atoms)
            for label in labels:
                self.atoms.freeze(label, operator)
            if _frozen(self.atoms) != before:
                return True
        return False

    def freeze_group(self, group: ChannelGroup, operator: str) -> None:
        self.atoms.freeze(group.atoms, operator)


def _proven(network: nn.Module, example: Tensor, walked: list[_Walked]) -> ChannelAnalysis:
    """Cuts on trial, and ties or freezes what fails, until nothing does."""
    types = {name: type(module) for name, module in network.named_modules()}
    for count, part in enumerate(walked, 1):
        tried: set[type[nn.Module]] = set()
        while True:
            analysis = _analysis(walked[:count])
            failure = prove(network, analysis, example)
            if failure is None:
                break
            if _mend_module(part, failure, types, tried, may_tie=part.kind == "channels"):
                continue
            failure = prove(network, analysis, example, narrow=True) or failure
            for group in failure.groups:
                by_kind = {each.kind: each for each in walked}
                by_kind[group.kind].freeze_group(group, f"a trial cut ({failure.reason})")
    return analysis


def _mend_module(
    walked: _Walked,
    failure: Failure,
    types: dict[str, type[nn.Module]],
    tried: set[type[nn.Module]],
    may_tie: bool,
) -> bool:
    """Ties or else freezes what the code of all modules of the failing type touches. False if there is nothing."""
    if failure.module is None:
        return False
    kind = types[failure.module]
    alike = [name for name, other in types.items() if other is kind]
    if may_tie and kind not in tried:
        tried.add(kind)
        # All of them, not only the first that changes something.
        if sum(walked.settle_with(name) for name in alike):
            return True
    return sum(walked.freeze_module(name, f"{CODE} {kind.__name__}") for name in alike) > 0


def _analysis(parts: list[_Walked]) -> ChannelAnalysis:
    slices = [part.slices() for part in parts]
    groups = [_bare_group(group) for part, own in zip(parts, slices, strict=True) for group in part.groups(own)]
    names: dict[str, int] = {}
    channels = parts[0]
    return ChannelAnalysis(
        groups=tuple(_renamed(group, names) for group in groups),
        freezes=tuple(channels.freezes(slices[0])),
        sizes=tuple(size for part in parts for size in part.sizes()),
        scalings=tuple(channels.scalings()),
        whole_groups=frozenset(_bare(name) for walk in channels.walks for name in walk.whole_groups),
    )


def _programs(core: Core, example: Tensor) -> list[ExportedProgram]:
    """The traced network; where training runs more of it, such as auxiliary heads, that as well."""
    program = _trace(core, example, training=False)
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    if all(name in used for name in program.graph_signature.inputs_to_parameters):
        return [program]
    try:
        return [program, _trace(core, example, training=True)]
    except NetworkError:
        return [program]


def trace(network: nn.Module, example: Tensor) -> ExportedProgram:
    """A network as a graph, in evaluation mode.

    Raises:
        NetworkError: If `torch.export` cannot trace it.
    """
    return _trace(core_of(network), example, training=False)


def _trace(core: Core, example: Tensor, training: bool) -> ExportedProgram:
    network = core.network
    was_training = {module: module.training for module in core.modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to authors of the traced code
            return torch.export.export(core.train(training), (example.clone(),), strict=False)
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError, IndexError) as error:
        if is_of_memory(error):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NetworkError(
            f"{type(network).__name__} cannot be traced by torch.export: {first[:200].rstrip('.')}.",
            "Leave out [prune] and [plan], or remove data-dependent control flow from the network's forward.",
        ) from error
    finally:
        for module, mode in was_training.items():
            module.training = mode


def _slices(atoms: Atoms) -> Slices:
    slices: Slices = {}
    for key, roots in _bindings(atoms):
        order = np.argsort(roots, kind="stable")
        values, starts = np.unique(roots[order], return_index=True)
        bounds = [*starts.tolist(), len(order)]
        for place, root in enumerate(values.tolist()):
            if root != CONSTANT:
                slices.setdefault(root, {})[key] = order[bounds[place] : bounds[place + 1]]
    return slices


def _bindings(atoms: Atoms) -> Iterator[tuple[tuple[str, int], Label]]:
    """Every dimension of every tensor that channels run along, with the atoms that stand for its indices."""
    for key, label in atoms.bindings.items():
        yield key, atoms.roots(label)
    for tensor, label in atoms.values.items():
        axes = atoms.varying(label)
        if len(axes) == 1:
            rest = tuple(slice(None) if axis == axes[0] else 0 for axis in range(label.ndim))
            yield (tensor, axes[0]), atoms.roots(label[rest])


def _frozen(atoms: Atoms) -> set[int]:
    frozen = [entry.atoms for entry in atoms.frozen]
    # A tensor that channels run through in two directions at once, or as a whole, cannot be cut.
    frozen += [label.reshape(-1) for label in atoms.values.values() if len(atoms.varying(label)) != 1]
    return set(atoms.roots(np.concatenate(frozen)).tolist()) if frozen else set()


def _groups(slices: Slices, frozen: set[int], kind: Kind) -> list[ChannelGroup]:
    alike: dict[tuple[object, ...], list[int]] = {}
    for root, members in slices.items():
        # Channels are alike, and one group, if they have as many indices in the same places.
        signature = (root in frozen, *((key, len(indices)) for key, indices in members.items()))
        alike.setdefault(signature, []).append(root)
    return [_group(roots, slices, frozen, kind) for roots in alike.values()]


def _group(roots: list[int], slices: Slices, frozen: set[int], kind: Kind) -> ChannelGroup:
    keys = list(slices[roots[0]])
    first = keys[0]
    roots = sorted(roots, key=lambda root: int(slices[root][first][0]))
    members = tuple(Member(tensor, dim, tuple(slices[root][tensor, dim] for root in roots)) for tensor, dim in keys)
    name = _layer(first[0]) + (":heads" if kind == "heads" else "")
    return ChannelGroup(name, len(roots), members, roots[0] in frozen, kind, np.array(roots, dtype=np.int64))


def _bare_group(group: ChannelGroup) -> ChannelGroup:
    members = tuple(Member(_bare(member.tensor), member.dim, member.indices) for member in group.members)
    return replace(group, members=members)


def _renamed(group: ChannelGroup, names: dict[str, int]) -> ChannelGroup:
    """A layer whose channels belong to several groups names them `layer`, `layer#2`, …."""
    names[group.name] = names.get(group.name, 0) + 1
    if names[group.name] == 1:
        return group
    name = f"{group.name}#{names[group.name]}"
    return ChannelGroup(name, group.size, group.members, group.frozen, group.kind, group.atoms)


def _may_come_from_a_width(factor: float | None, shape: Iterable[int]) -> bool:
    return factor is None or any(abs(factor - size**-0.5) < 1e-6 for size in shape if size > 1)


def _layer(tensor: str) -> str:
    bare = _bare(tensor)
    return bare.rpartition(".")[0] or bare


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _near(path: str, module: str) -> bool:
    """Whether a path is a module's own or that of one of its children."""
    return path == module or path.rpartition(".")[0] == module


def _path(module: str) -> str:
    """Path of a module in the network, from that in its core; the core's own code counts as the network's."""
    return "" if module == PREFIX.rstrip(".") else _bare(module)
