"""Where a training stands, on disk: enough to go on as if it had never been ended."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from onnxdistill.errors import UsageError, is_of_memory
from onnxdistill.tensorfile import load_tensors, save_tensors

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

State = dict[str, Any]
"""Tensors and plain values only."""


class Checkpoint:
    """A file that holds the state of one training, and of no other one.

    Args:
        path: The file; its folder is made when there is something to save.
        fingerprint: Of everything that decides what the training comes to; see `fingerprint`.

    Attributes:
        refused: Why what the file was found to hold is not gone on with, and is replaced by `save`; None if it is.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self.refused: str | None = None

    def save(self, state: State) -> None:
        """Writes the state; whenever the process is ended, the file holds this state or the one before.

        Raises:
            OSError: If the file cannot be written.
        """
        self._path.parent.mkdir(exist_ok=True)
        save_tensors({"fingerprint": self._fingerprint, "state": state}, self._path)

    def load(self) -> State | None:
        """The state that was saved last; None if there is none, or it is damaged or that of another training.

        Raises:
            OSError: If the file cannot be read: what it holds may be worth hours.
            UsageError: If there is no room for it in memory.
        """
        try:
            content = load_tensors(self._path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.refused = f"what was kept here is damaged ({error}), and it began anew"
            return None
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            raise UsageError(
                f"{self._path}, where a training was left, does not fit into memory.",
                "Close other programs; or delete it, and that training begins anew.",
            ) from error
        if not isinstance(content, dict) or content.get("fingerprint") != self._fingerprint:
            self.refused = (
                "what was kept here is of a training with other settings, data or weights, of another version, or "
                "on other processors; it does not fit, and it began anew"
            )
            return None
        state = content.get("state")
        return state if isinstance(state, dict) else None


def shown(network: nn.Module) -> str:
    """What a network shows of itself; without addresses of functions, which every process has its own of."""
    return _ADDRESS.sub("", repr(network))


def fingerprint(*parts: nn.Module | BaseModel | Tensor | str | None) -> str:
    """A hash of networks (their tensors, and what they show of themselves), recipe tables, tensors and texts."""
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        match part:
            case nn.Module():
                digest.update(shown(part).encode())
                tensors = [*part.named_parameters(), *part.named_buffers()]
                for name, tensor in tensors:
                    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}".encode())
                    digest.update(_bytes_of(tensor))
            case BaseModel():
                digest.update(part.model_dump_json().encode())
            case Tensor():
                digest.update(_bytes_of(part))
            case _:
                digest.update(repr(part).encode())
    return digest.hexdigest()


def plain_random_state(state: Any) -> dict[str, Any]:
    """The state of a NumPy generator, whose large integers no tensor format holds, as texts and small values."""
    return {
        "bit_generator": state["bit_generator"],
        "state": {name: str(value) for name, value in state["state"].items()},
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }


def numpy_random_state(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `plain_random_state`."""
    return {**plain, "state": {name: int(value) for name, value in plain["state"].items()}}


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
