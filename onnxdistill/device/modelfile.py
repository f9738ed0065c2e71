"""A model file on disk: what it weighs, and why ONNX Runtime would not load it."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

from onnxdistill.errors import ModelFileError

# A StringStringEntryProto {key: "location", value: <up to 127 bytes>}: where a tensor's external data is.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOAD_FAILED = re.compile(r"^Load model (?:from .*? )?failed:")
# `/onnxruntime_src/.../model.cc:256 onnxruntime::Model::Model(const X&, ...) `: nothing in it for a user.
_CODE_PLACE = re.compile(r"\S*\.(?:cc|h|cpp|cu):\d+ (?:[\w:<>~*& ]+\(.*?\)(?: const)? (?=[A-Z])|\w+ )?", re.DOTALL)


@dataclass(frozen=True)
class ModelFile:
    """A model file as it is on disk.

    Attributes:
        path: The file.
        size_bytes: The file together with the external data files that it refers to.
        sha256: Of the file itself, in hexadecimal.
    """

    path: Path
    size_bytes: int
    sha256: str


def read_model_file(path: Path) -> ModelFile:
    """Weighs and hashes a model file without understanding it.

    Raises:
        ModelFileError: If it is missing, a folder, empty, or not readable.
    """
    check_model_file(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sizes = [(path.parent / name).stat().st_size for name in external_files(path)]
    return ModelFile(path, path.stat().st_size + sum(sizes), digest)


def external_files(model: Path) -> set[str]:
    """Paths of the external data of a model, as seen from its folder; nothing that lies outside of it.

    A model from somewhere could name any file of this machine. ONNX Runtime does not read such a one either.
    """
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        named = {os.path.normpath(_location(content, match)) for match in _LOCATION.finditer(content)}
    homes = (model.parent.resolve(), model.resolve().parent)
    return {
        Path(name).as_posix()
        for name in named
        if not Path(name).is_absolute()
        and ".." not in Path(name).parts
        and (path := model.parent / name).is_file()
        and any(path.resolve().is_relative_to(home) for home in homes)
    }


def _location(content: mmap.mmap, match: re.Match[bytes]) -> str:
    return os.fsdecode(content[match.end() : match.end() + match[1][0]]).replace("\0", "\N{REPLACEMENT CHARACTER}")


def check_model_file(path: Path) -> None:
    """Makes sure that there is a file with something in it.

    Raises:
        ModelFileError: If it is missing, a folder, empty, or not readable.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:  # ONNX Runtime takes names as UTF-8
        shown = str(path).encode(errors="replace").decode()
        raise ModelFileError(f"The name of {shown} is no UTF-8.", "Rename the file or its folder.") from None
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder.", "Name the .onnx file in it.")
    if not path.exists():
        raise ModelFileError(f"There is no file {path}.", "Check the path of the model.")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a regular file.", "Name an .onnx file.")
    if not os.access(path, os.R_OK):
        raise ModelFileError(f"{path} may not be read.", "Check its permissions.")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty.", "Export or copy the model again.")


def explain_load_failure(path: Path | None, error: Exception, runtime_version: str) -> ModelFileError:
    """Turns an exception of ONNX Runtime into a paragraph that says what is wrong with the model.

    Args:
        path: The file that did not load; None if the model came from memory.
        error: What ONNX Runtime raised.
        runtime_version: Its version.
    """
    name = "The model" if path is None else str(path)
    message = str(error)
    if "PROTOBUF" in message:
        return _explain_unparsable(path, name)
    if "External data path" in message or "external data" in message.lower():
        data = re.search(r'"([^"]+)"', message)
        which = f" ({Path(data[1]).name})" if data else ""
        return ModelFileError(
            f"{name} keeps its weights in a separate file{which}, which cannot be read.",
            "Copy it into the folder of the model, or export the model as a single file.",
        )
    if custom := re.search(r"([\w.]*:\w+)\(-?\d*\) is not a registered function/op", message):
        return _explain_operator(name, custom[1].lstrip(":"), runtime_version)
    if unknown := re.search(r"No Op registered for (\w+) with domain_version of (\d+)", message):
        return _explain_operator(name, f"{unknown[1]} (opset {unknown[2]})", runtime_version)
    if version := re.search(r"Unsupported model IR version: \d+|Opset \d+", message):
        return ModelFileError(
            f"{name} is newer than ONNX Runtime {runtime_version} can read ({version[0]}).",
            "Install a newer ONNX Runtime, or export the model with a lower opset.",
        )
    return ModelFileError(f"ONNX Runtime {runtime_version} cannot load {name}: {plain_message(error)}")


def _explain_operator(name: str, operator: str, runtime_version: str) -> ModelFileError:
    return ModelFileError(
        f"{name} uses the operator {operator}, which ONNX Runtime {runtime_version} does not have.",
        "Export the model without custom operators, or with an opset that this ONNX Runtime knows.",
    )


def _explain_unparsable(path: Path | None, name: str) -> ModelFileError:
    head = b"" if path is None else _head(path)
    if head.startswith(b"version https://git-lfs"):
        return ModelFileError(f"{name} is a Git LFS pointer and not the model itself.", "Run: git lfs pull.")
    if head.startswith(b"PK\x03\x04"):
        return ModelFileError(
            f"{name} is a zip archive, as PyTorch checkpoints are, and not an ONNX model.",
            "Name the exported .onnx file.",
        )
    if head and all(byte >= 0x20 or byte in b"\t\r\n" for byte in head):
        begin = head.decode("utf-8", "replace").split("\n")[0][:40].strip()
        return ModelFileError(
            f"{name} is a text file and not an ONNX model; it begins with {begin!r}.",
            "Name the exported .onnx file.",
        )
    size = "" if path is None else f" ({path.stat().st_size:,} bytes)"
    return ModelFileError(
        f"{name}{size} is not an ONNX model, or is damaged or cut off.", "Export or copy the model again."
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def plain_message(error: Exception) -> str:
    """ONNX Runtime's message as one sentence, without its status code and its places in C++ code."""
    message = _LOAD_FAILED.sub("", _STATUS.sub("", str(error)))
    message = " ".join(_CODE_PLACE.sub("", message).split())
    return f"{message[:400].rstrip('. ')}."
