"""What work on another machine needs there: put together here by `pack`, and read there by `read_request`.

In the folder there:

    package/onnxdistill/   the device half of this package
    request.json           what is to be done, the models by name, and the keyword arguments
    inputs.npz             the arrays of the argument `inputs`, if there are any
    models/0/              the models of a folder here, with the files of their external data
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import onnxdistill
from onnxdistill.device.modelfile import check_model_file, external_files
from onnxdistill.device.result import BenchResult
from onnxdistill.device.session import Array
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import ModelFileError, UsageError

_REQUEST, _INPUTS, _PACKAGE = "request.json", "inputs.npz", "package"
_CHUNK_BYTES = 1 << 20

OnSent = Callable[[int, int], None]


@dataclass(frozen=True)
class Parcel:
    """Files to send.

    Attributes:
        files: Content, or a file that has it, by the name in the folder there.
        sizes_bytes: Of each of them, by the same name.
        places: What the user calls models and their folders, by the name in the folder there.
    """

    files: dict[str, bytes | Path]
    sizes_bytes: dict[str, int]
    places: dict[str, str]

    def send(self, stream: IO[bytes], on_sent: OnSent) -> None:
        """Writes the files as `receiver` reads them, a megabyte at a time.

        Args:
            stream: Where to.
            on_sent: Called with how many bytes have been written, and how many there are.

        Raises:
            ModelFileError: If a file is now shorter than it was.
            OSError: If a file cannot be read, or nobody reads the stream.
        """
        total = sum(self.sizes_bytes.values())
        stream.write(json.dumps({"files": list(self.sizes_bytes.items())}).encode() + b"\n")
        sent = 0
        for name, content in self.files.items():
            for part in _parts(content, self.sizes_bytes[name]):
                stream.write(part)
                sent += len(part)
                on_sent(sent, total)
        stream.flush()

    def as_known_here(self, text: str, folder: str) -> str:
        """A text from the other machine, with the paths that the user has given in the place of those there.

        Args:
            text: Of any kind.
            folder: Path of the folder there.
        """
        for name, place in sorted(self.places.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(f"{folder}/{name}", place)
        return text


def pack(work: str, models: Mapping[str, Path], options: Mapping[str, Any], scratch: Path) -> Parcel:
    """Puts together what to send.

    Args:
        work: What is to be done; see `work.WORK`.
        models: Files by name.
        options: Its keyword arguments, all but `on_progress`.
        scratch: A folder for what is too large for the memory until it is sent.

    Raises:
        ModelFileError: If a model is missing, a folder, empty, or not readable.
        UsageError: If inputs are objects of Python.
    """
    files: dict[str, bytes | Path] = dict(_package())
    folders: dict[Path, str] = {}
    places: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, path in models.items():
        check_model_file(path)
        folder = folders.setdefault(path.absolute().parent, f"models/{len(folders)}")
        names[name] = f"{folder}/{path.name}"
        places |= {names[name]: str(path), folder: str(path.parent)}
        files[names[name]] = path
        files |= {f"{folder}/{location}": path.parent / location for location in external_files(path)}
    inputs = options.get("inputs")
    if inputs is not None:
        files[_INPUTS] = _save(inputs, scratch / _INPUTS)
    request = {
        "work": work,
        "models": names,
        "options": _plain(options),
        "inputs": None if inputs is None else list(inputs),
    }
    files[_REQUEST] = json.dumps(request).encode()
    sizes = {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in files.items()}
    return Parcel(files, sizes, places)


def read_request(folder: Path) -> tuple[str, dict[str, Path], dict[str, Any]]:
    """The inverse of `pack`, in the folder there: what is to be done, the models by name, and keyword arguments."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    options = request["options"]
    if options.get("slo") is not None:
        options["slo"] = Slo(**options["slo"])
    if options.get("earlier") is not None:
        options["earlier"] = BenchResult.from_json(options["earlier"])
    if request["inputs"] is not None:
        with np.load(folder / _INPUTS, allow_pickle=False) as file:
            options["inputs"] = dict(zip(request["inputs"], (file[key] for key in file.files), strict=True))
    return request["work"], {name: folder / path for name, path in request["models"].items()}, options


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without the inputs, which are no JSON."""
    plain = {name: value for name, value in options.items() if name != "inputs"}
    if plain.get("slo") is not None:
        plain["slo"] = plain["slo"].__dict__
    if plain.get("earlier") is not None:
        plain["earlier"] = plain["earlier"].to_json()
    return plain


def _package() -> Iterator[tuple[str, bytes]]:
    home = Path(onnxdistill.__file__).parent
    for path in (home / "__init__.py", home / "errors.py", *sorted((home / "device").rglob("*.py"))):
        yield f"{_PACKAGE}/{path.relative_to(home.parent).as_posix()}", path.read_bytes()


def _save(inputs: Mapping[str, Array], path: Path) -> Path:
    for name, array in inputs.items():
        if array.dtype.hasobject:
            raise UsageError(
                f"The input {name!r} is an array of Python objects, which cannot be sent to another machine.",
                "Give it as an array of numbers or of fixed-width strings.",
            )
    # By position: any name would do for an input, but not for a keyword argument.
    np.savez(path, *inputs.values())
    return path


def _parts(content: bytes | Path, size_bytes: int) -> Iterator[bytes]:
    """As many bytes as were promised, even if the file has grown since."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        left = size_bytes
        while left:
            part = file.read(min(left, _CHUNK_BYTES))
            if not part:
                raise ModelFileError(f"{content!s} became shorter while it was sent.", "Try again.")
            left -= len(part)
            yield part
