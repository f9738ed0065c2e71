"""What a training runs on: the processor or a GPU, in which floating-point type."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from onnxdistill.errors import UsageError
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import TrainingBatch

# oneDNN has fast bfloat16 kernels where the processor has one of these; elsewhere it emulates them slowly.
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Hardware:
    """Where tensors lie, and the type of activations in autocast; weights stay float32."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, table: TrainingTable) -> Hardware:
        """What a table asks for, of what this process has.

        A precision of `auto` is bfloat16 where there are instructions for it: on ResNet-20 a step then takes about half
        as long on a processor. Of several processes on one machine, each takes a GPU of its own, as far as they go.

        Raises:
            UsageError: If torch cannot use what is asked for.
        """
        if table.device == "cpu":
            return cls(torch.device("cpu"), _type(table, has_fast_bfloat16()))
        if not torch.cuda.is_available():
            raise UsageError(
                "device = 'cuda' asks for a GPU, and this installation of torch cannot use one.",
                "Leave it out to train on the processor, or install torch for CUDA.",
            )
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        with torch.cuda.device(device):
            return cls(device, _type(table, torch.cuda.is_bf16_supported(including_emulation=False)))

    def autocast(self) -> torch.autocast:
        """Activations in `dtype` within the block; nothing changes for float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def placed(self, batch: TrainingBatch) -> TrainingBatch:
        """A batch where the network is; which samples they are is looked up on the processor."""
        return TrainingBatch(batch.inputs.to(self.device), batch.targets.to(self.device), batch.samples)

    def forked(self) -> AbstractContextManager[None]:
        """Within the block, random numbers are drawn that leave no trace after it."""
        if self.device.type == "cpu":
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[self.device.index], device_type=self.device.type)

    def wait(self) -> None:
        """Until all that was asked for is done: a GPU does it later."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def release(self) -> None:
        """Gives memory that nothing uses any more back, for ONNX Runtime on the same GPU."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()

    def random_state(self) -> Tensor | None:
        """Of the GPU's numbers, those of dropout; None without one, where torch's own are all."""
        return None if self.device.type == "cpu" else torch.get_device_module(self.device).get_rng_state(self.device)

    def set_random_state(self, state: Tensor | None) -> None:
        """The inverse of `random_state`."""
        if state is not None:
            torch.get_device_module(self.device).set_rng_state(state, self.device)


@cache
def has_fast_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_CAPABILITIES)


def _type(table: TrainingTable, fast: bool) -> torch.dtype:
    wanted = {"auto": fast, "float32": False, "bfloat16": True}[table.precision]
    return torch.bfloat16 if wanted else torch.float32


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy in main memory, which steps on a GPU leave alone as well."""
    return copy.deepcopy(cast("dict[str, Any]", on_processor(state)))


def on_processor(state: Any) -> Any:
    """Dicts, lists and tuples with their tensors in main memory, where other processes and files get them from."""
    match state:
        case Tensor():
            return state.cpu()
        case dict():
            moved = {name: on_processor(value) for name, value in state.items()}
            if not hasattr(state, "_metadata"):
                return moved
            whole = OrderedDict(moved)  # a state dict, which has the versions of its modules
            whole._metadata = state._metadata  # type: ignore[attr-defined]  # so does torch
            return whole
        case list() | tuple():
            return type(state)(on_processor(value) for value in state)
        case _:
            return state


def notes_on_devices(tables: Iterable[TrainingTable]) -> list[str]:
    """A sentence where there is something that trainings leave idle.

    Raises:
        UsageError: If something that they ask for is not there.
    """
    hardware = [Hardware.of(table) for table in tables]
    if torch.cuda.is_available() and any(one.device.type == "cpu" for one in hardware):
        return ["trainings run on the processor, though torch can use a GPU here: set device = 'cuda' in their tables."]
    return []
