"""What runs before a change of a network gives what it gave before, and need not run again.

Whoever tries many single changes, one after the other, saves half of the work on the average where a network is made of
blocks: all modules that have ended when the first changed one begins get the same inputs, and so give the same outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onnxdistill.errors import is_of_memory

# Outputs that are held, those of outer modules first.
_HELD_BYTES = 2**30

_Plain = int | float | str | None


@dataclass
class _Call:
    """How a module ran.

    Attributes:
        start: Place of its beginning among all beginnings and ends, and uses of tensors.
        end: Likewise.
        count: How often it ran; the rest is of the first time.
        pure: Whether it gave a tensor and left its inputs, which were tensors, as they were.
        received: Sums of its inputs, which tell others from them.
        output: Only where it is held.
        version: Of the output, which tells whether it was written to later.
        output_bytes: Its size.
    """

    start: int
    end: int = -1
    count: int = 1
    pure: bool = False
    received: tuple[float, ...] = ()
    output: Tensor | None = None
    version: int = 0
    output_bytes: int = 0


class Prefix:
    """Runs changed networks from the first change on.

    A module that does more than the modules in it give, such as keep what hooks have seen, runs with all of them.

    Args:
        network: In evaluation mode; not changed.
        inputs: What the changed networks will be given.
    """

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self._network = network
        self._inputs = inputs
        self._modules = dict(network.named_modules())
        self._calls: dict[str, _Call] = {}
        self._uses: dict[int, int] = {}
        self._stale = False
        if any(isinstance(module, torch.jit.ScriptModule) for module in self._modules.values()):
            return  # they cannot be looked into
        try:
            self._run(())
            self._held = _outermost(self._calls)
            self._run(self._held)
            self._prove()
        except Exception as error:  # of memory, which a user's code may raise as anything
            if not is_of_memory(error):
                raise
            self._calls = {}  # it only saves time, and the memory is not for that

    @contextmanager
    def given(self, changed: nn.Module) -> Iterator[None]:
        """While this is entered, modules of a changed network that run before the change give what they gave.

        Args:
            changed: A changed copy, in evaluation mode, which is to get the inputs.
        """
        try:
            self._refresh()
        except Exception as error:  # of memory, which a user's code may raise as anything
            if not is_of_memory(error):
                raise
            self._calls = {}
        modules = dict(changed.named_modules())
        outputs = self._before(self._changed_at(modules)) if self._calls else {}
        with self._replaying(modules, outputs, {name: partial(_given, output) for name, output in outputs.items()}):
            yield

    @contextmanager
    def _replaying(
        self, modules: dict[str, nn.Module], outputs: dict[str, Tensor], forwards: Mapping[str, Callable[..., Tensor]]
    ) -> Iterator[None]:
        names = list(outputs)
        for name in names:
            vars(modules[name])["forward"] = forwards[name]
        try:
            yield
        finally:
            for name in names:
                del vars(modules[name])["forward"]
            # Where a block has gone, what follows it may write to what came before it.
            if any(output._version != self._calls[name].version for name, output in outputs.items()):
                outputs.clear()
                self._stale = True

    def _refresh(self) -> None:
        """Runs again if outputs that are held were written to."""
        if self._stale:
            self._run(self._held)
            self._stale = False

    def _run(self, held: Collection[str]) -> None:
        """Notes how all modules run, with the outputs of some, and when tensors are used first."""
        recording = _Recording(held)
        self._calls = recording.calls
        uses = _Uses([*self._network.parameters(), *self._network.buffers()], recording.clock)
        with uses, recording.of(self._modules), torch.no_grad():
            self._network(self._inputs.clone())
        self._uses = uses.first
        for call in self._calls.values():
            if call.output is not None and (call.output._version != call.version or call.count > 1 or not call.pure):
                call.output = None

    def _prove(self) -> None:
        """Forgets what modules gave that are in one which does more than that; or all, if that is not all of it."""
        used = self._used()
        for name in list(self._calls):
            inside = self._inside(name)
            if not (inside or _is_of_users(self._modules[name])) or self._gives_the_same(used, name):
                continue
            self._held -= inside
            for one in inside:
                self._calls[one].output = None
            if not inside or not self._gives_the_same(used, name):  # it needs what others do when they run
                self._calls = {}
                return

    def _used(self) -> nn.Module | None:
        """The network after other inputs, of which modules may keep something; None if it does not take them."""
        used = copy.deepcopy(self._network)
        try:
            with torch.no_grad():
                used(torch.zeros_like(self._inputs))
        except Exception as error:  # a user's code runs, which can raise anything
            if is_of_memory(error):
                raise
            return None
        return used

    def _gives_the_same(self, used: nn.Module | None, running: str) -> bool:
        """Whether all modules still get what they got, and the network gives what it gave, when few of them run.

        Args:
            used: The network after other inputs; nothing is known without.
            running: Name of the module that runs, with those that it is in; those beside and in it give what they gave.
        """
        if used is None:
            return False
        self._refresh()
        expected = self._calls[""].output if "" in self._calls else None
        copied = copy.deepcopy(used)
        outputs, others = self._around(running), list[str]()

        def given(name: str, *inputs: Any, **named: Any) -> Tensor:
            if _sums([*inputs, *named.values()]) != self._calls[name].received:
                others.append(name)
            return outputs[name]

        forwards = {name: partial(given, name) for name in outputs}
        try:
            with torch.no_grad(), self._replaying(dict(copied.named_modules()), outputs, forwards):
                result = copied(self._inputs.clone())
        except Exception as error:  # a user's code runs, which can raise anything
            if is_of_memory(error):
                raise
            return False
        same = expected is not None and isinstance(result, Tensor) and torch.equal(result, expected)
        return same and not others

    def _changed_at(self, modules: dict[str, nn.Module]) -> float:
        """When the first module began, or was read, that is another one now."""
        return min(
            (
                self._start(name, module)
                for name, module in self._modules.items()
                if name not in modules or not _alike(module, modules[name])
            ),
            default=math.inf,
        )

    def _start(self, name: str, module: nn.Module) -> int:
        """When a module began, or whatever it is in; or when its tensors were read, if that was earlier."""
        while name and name not in self._calls:
            name = name.rpartition(".")[0]
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        read = [self._uses[id(tensor)] for tensor in tensors if id(tensor) in self._uses]
        return min([self._calls[name].start if name in self._calls else 0, *read])

    def _before(self, time: float) -> dict[str, Tensor]:
        """The outputs that are held of the outermost modules that had ended by then."""
        return self._outermost_outputs(lambda call: call.end < time)

    def _around(self, name: str) -> dict[str, Tensor]:
        """Those of the outermost modules that are neither this one nor around it."""
        inner = self._calls[name]
        return self._outermost_outputs(lambda call: call.start > inner.start or call.end < inner.end)

    def _outermost_outputs(self, is_wanted: Callable[[_Call], bool]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        within = -1
        for name, call in self._calls.items():  # in the order in which they began
            if call.output is not None and call.start > within and is_wanted(call):
                found[name], within = call.output, call.end
        return found

    def _inside(self, name: str) -> set[str]:
        """The modules that this one runs, directly or not, whose outputs are held."""
        outer = self._calls[name]
        return {
            one
            for one, call in self._calls.items()
            if call.output is not None and call.start > outer.start and call.end < outer.end
        }


class _Recording:
    """Notes how modules run.

    Args:
        held: Names of those whose outputs are kept.

    Attributes:
        calls: By name, in the order in which they begin.
        clock: Gives places.
    """

    def __init__(self, held: Collection[str]) -> None:
        self._held = held
        self.calls: dict[str, _Call] = {}
        self.clock = count()
        self._received: dict[str, list[tuple[Tensor, int]]] = {}

    @contextmanager
    def of(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """While this is entered, it notes how these run."""
        handles = []
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(self._end, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name in self.calls:
            self.calls[name].count += 1
            return
        self.calls[name] = _Call(next(self.clock))
        given = [*inputs, *named.values()]
        if all(_is_usual(one) or isinstance(one, bool | int | float | None) for one in given):
            self._received[name] = [(one, one._version) for one in given if isinstance(one, Tensor)]
            self.calls[name].received = _sums(given)

    def _end(self, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        call, received = self.calls[name], self._received.pop(name, None)
        if call.end >= 0:
            return
        call.end = next(self.clock)
        if received is not None and _is_usual(output) and "forward" not in vars(module):
            call.pure = all(one._version == version for one, version in received)
            call.output_bytes, call.version = output.nbytes, output._version
            call.output = output if name in self._held else None


class _Uses(TorchFunctionMode):
    """Notes when functions first get some of the tensors.

    Args:
        tensors: That are looked for.
        clock: Gives places.

    Attributes:
        first: The place of each, by its identity.
    """

    def __init__(self, tensors: Iterable[Tensor], clock: Iterator[int]) -> None:
        super().__init__()
        self._wanted = set(map(id, tensors))
        self._clock = clock
        self.first: dict[int, int] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for one in value if isinstance(value, list | tuple) else (value,):
                if id(one) in self._wanted:
                    self.first.setdefault(id(one), next(self._clock))
        return function(*args, **(kwargs or {}))


def _outermost(calls: dict[str, _Call]) -> set[str]:
    """The modules whose outputs fit into memory together, outer ones first."""
    held, left_bytes = set(), _HELD_BYTES
    for name in sorted(calls, key=lambda one: one.count(".")):
        call = calls[name]
        if call.pure and call.count == 1 and call.output_bytes <= left_bytes:
            held.add(name)
            left_bytes -= call.output_bytes
    return held


def _is_of_users(module: nn.Module) -> bool:
    """Whether its code is somebody's own."""
    return not type(module).__module__.startswith("torch.nn.")


def _is_usual(value: Any) -> bool:
    """Whether it is a tensor that counts how often it was written to, and that has a sum."""
    return isinstance(value, Tensor) and not value.is_inference() and not value.is_complex()


def _sums(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value.sum(dtype=torch.float64)) for value in values if isinstance(value, Tensor))


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are the same but for the modules in them."""
    if type(one) is not type(other) or one._modules.keys() != other._modules.keys():
        return False
    if _plain(one) != _plain(other):
        return False
    return all(
        mine.keys() == others.keys() and all(_equal(mine[name], others[name]) for name in mine)
        for mine, others in ((one._parameters, other._parameters), (one._buffers, other._buffers))
    )


def _plain(module: nn.Module) -> dict[str, Any]:
    """Its attributes that are numbers and texts, or tuples of them."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _Plain) or (isinstance(value, tuple) and all(isinstance(part, _Plain) for part in value))
    }


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _given(output: Tensor, *_inputs: Any, **_named: Any) -> Tensor:
    return output
