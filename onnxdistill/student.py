"""The student as a PyTorch module, saved and loaded: to train it on, to export it otherwise, to prune it again."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError, OutputError, WeightsError
from onnxdistill.graph.structure import rebuild, structure_of
from onnxdistill.networks import build_network

FORMAT = 1
_KEYS = {"format", "network", "class_count", "structure", "state"}


def save_student(student: nn.Module, network: str, class_count: int, path: Path, example: Tensor) -> None:
    """Writes a student so that `load_student` brings it back; that is tried before anything is written.

    Args:
        student: Made from the network of that name by removing blocks or channels, or by low-rank pairs.
        network: A name as for `networks.build_network`.
        class_count: Number of outputs.
        path: The file.
        example: An input that both are compared on.

    Raises:
        NetworkError: If the student cannot be rebuilt, or the rebuilt one computes something else.
        OutputError: If there is no such folder.
    """
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Make it first, or choose another place.")
    original = build_network(network, class_count, 0)
    structure = structure_of(student, original)
    rebuilt = rebuild(original, structure, student.state_dict())
    with torch.inference_mode():
        expected, actual = copy.deepcopy(student).eval()(example), rebuilt(example)
    if not torch.allclose(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise NetworkError(
            f"The student of {network} computes something else once it is rebuilt from its weights.",
            "The network keeps something outside its parameters and buffers that changes its outputs.",
        )
    torch.save(
        {
            "format": FORMAT,
            "network": network,
            "class_count": class_count,
            "structure": structure,
            "state": student.state_dict(),
        },
        path,
    )


def load_student(path: Path | str) -> nn.Module:
    """Rebuilds a student from the `student.pt` of a run folder: an ordinary module in evaluation mode.

    The file holds tensors and plain values only, and is read as such; the network's own code is what the recipe named.

    Args:
        path: The file.

    Raises:
        WeightsError: If the file is missing, damaged, or something else.
        NetworkError: If the network cannot be built, or does not take the weights.
    """
    content = _read(Path(path))
    original = build_network(content["network"], content["class_count"], 0)
    return rebuild(original, content["structure"], content["state"])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is not a file.", "Give the student.pt of a run folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise WeightsError(
            f"{path} cannot be read as a student ({type(error).__name__}).",
            "The file is damaged or something else; take the student.pt of a run folder.",
        ) from error
    if not isinstance(content, dict) or content.keys() != _KEYS or content["format"] != FORMAT:
        raise WeightsError(f"{path} is not a student of this version.", "Take the student.pt of a run folder.")
    return content
