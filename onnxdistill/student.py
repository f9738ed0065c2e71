"""The student as a PyTorch module, saved and loaded: to train it on, to export it otherwise, to prune it again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError, OutputError, WeightsError, cannot_write
from onnxdistill.graph.structure import rebuild, structure_of
from onnxdistill.networks import BUILT_IN, build_network, probe
from onnxdistill.tensorfile import load_tensors, save_tensors

FORMAT = 1
_KEYS = {"format", "network", "class_count", "structure", "state", "example", "outputs"}
_TAKE_ANOTHER = "Take the student.pt of a run folder."
TOLERANCE = 1e-3
"""Relative to the largest output: another processor sums in another order."""


def save_student(student: nn.Module, network: str, class_count: int, path: Path, example: Tensor) -> None:
    """Writes a student so that `load_student` brings it back; that is tried before anything is written.

    Args:
        student: Made from the network of that name by removing blocks or channels, or by low-rank pairs.
        network: A name as for `networks.build_network`.
        class_count: Number of outputs.
        path: The file.
        example: An input that both are compared on; it goes into the file.

    Raises:
        NetworkError: If the student cannot be rebuilt, or the rebuilt one computes something else.
        OutputError: If the file cannot be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Make it first, or choose another place.")
    original = build_network(network, class_count, 0)
    probe(network, original, example)  # a lazy layer gets its sizes with its first input
    structure = structure_of(student, original)
    rebuilt = rebuild(original, structure, student.state_dict())
    with torch.inference_mode():
        outputs = copy.deepcopy(student).eval()(example.clone())
    if not _computes(rebuilt, example, outputs):
        raise NetworkError(
            f"The student of {network} computes something else once it is rebuilt from its weights.",
            "The network keeps something outside its parameters and buffers that changes its outputs.",
        )
    content = {
        "format": FORMAT,
        "network": network,
        "class_count": class_count,
        "structure": structure,
        "state": student.state_dict(),
        "example": example.clone(),
        "outputs": outputs.clone(),
    }
    try:
        save_tensors(content, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def load_student(path: Path | str, network: str | None = None) -> nn.Module:
    """Rebuilds a student from the `student.pt` of a run folder: an ordinary module in evaluation mode.

    The file holds tensors and plain values, and no code of its own is run. A network of the user's own is code, which
    a file must not name by itself: give it here.

    Args:
        path: The file.
        network: `MODULE:FUNCTION` or `path/to/file.py:FUNCTION`, as the recipe's `teacher.network`; not needed for
            built-in networks and those of torchvision.

    Raises:
        WeightsError: If the file is missing, damaged, or something else.
        NetworkError: If the network cannot be built, or is not the one that the student was made from.
    """
    content = _read(Path(path))
    name = network or content["network"]
    if network is None and name not in BUILT_IN and not name.startswith("torchvision:"):
        raise NetworkError(
            f"The student in {path} was made from {name}, which is code outside of this package.",
            f"If you trust it, load it with load_student({str(path)!r}, network={name!r}).",
        )
    original = build_network(name, content["class_count"], 0)
    probe(name, original, content["example"])
    student = rebuild(original, content["structure"], content["state"])
    if not _computes(student, content["example"], content["outputs"]):
        raise NetworkError(
            f"The student in {path} computes something else than when it was saved: {name} has changed since.",
            "Take the code that it was made with.",
        )
    return student


def _computes(network: nn.Module, example: Tensor, outputs: Tensor) -> bool:
    with torch.inference_mode():
        actual = network(example.clone())
    return torch.allclose(actual, outputs, rtol=0, atol=TOLERANCE * max(1e-6, float(outputs.abs().max())))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is not a file.", "Give the student.pt of a run folder.")
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise WeightsError(
            f"{path} cannot be read as a student ({error}).",
            "The file is damaged or something else; take the student.pt of a run folder.",
        ) from error
    if not isinstance(content, dict) or content.keys() != _KEYS or content["format"] != FORMAT:
        raise WeightsError(f"{path} is not a student of this version.", _TAKE_ANOTHER)
    kinds = {"network": str, "class_count": int, "structure": dict, "state": dict, "example": Tensor, "outputs": Tensor}
    for key, kind in kinds.items():
        if not isinstance(content[key], kind):
            raise WeightsError(f"{path} is not a student: its {key} is a {type(content[key]).__name__}.", _TAKE_ANOTHER)
    return content
