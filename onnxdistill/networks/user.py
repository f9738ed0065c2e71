"""A user's own network: `module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

from torch import nn

from onnxdistill.errors import NetworkError, is_of_memory
from onnxdistill.networks.calling import described

USER_MODULE = "onnxdistill_user_"
"""How the names of modules that are files of a user begin; hashes are at their ends."""


def user_builder(place: str, function: str, folder: Path | None) -> Callable[..., nn.Module]:
    """The function that a recipe names.

    Args:
        place: An importable module, or a path that ends in `.py`.
        function: Name of the function in it.
        folder: Where a relative path starts.

    Raises:
        NetworkError: If there is no such module, it cannot be imported, or it lacks the function.
    """
    module = _module_from_file(place, folder) if place.endswith(".py") else _module_by_name(place)
    builder = getattr(module, function, None)
    if not callable(builder):
        raise NetworkError(
            f"{place} has no function {function!r}.",
            "Write teacher.network as MODULE:FUNCTION or path/to/file.py:FUNCTION.",
        )
    return builder  # type: ignore[no-any-return]  # a user's function: checked when it has been called


def _module_by_name(place: str) -> ModuleType:
    if not place or place.startswith("."):
        raise NetworkError(
            f"teacher.network names the module {place!r}, which is empty or relative.",
            "Write it as package.module:FUNCTION or path/to/file.py:FUNCTION.",
        )
    fix = "Install the package that holds it, or give a path that ends in .py."
    return _imported(place, lambda: importlib.import_module(place), fix)


def _module_from_file(place: str, folder: Path | None) -> ModuleType:
    path = Path(place) if Path(place).is_absolute() else (folder or Path()) / place
    if not path.is_file():
        raise NetworkError(f"teacher.network names the file {path}, which does not exist.", "Correct the path.")
    # The same file is one module however often it is named, and another file of that name is another one: pickled
    # networks have to find their classes, in processes of other machines as well.
    code = path.read_bytes().replace(b"\r\n", b"\n")
    digest = hashlib.sha256(code).hexdigest()[:16]
    name = f"{USER_MODULE}{path.stem}_{digest}"
    for number in count(2):  # two files of the same content may read what lies beside them
        known = sys.modules.get(name)
        if known is None:
            break
        if _is_from(known, path):
            return known
        name = f"{USER_MODULE}{path.stem}_{digest}_{number}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NetworkError(f"{path} cannot be loaded as a Python module.", "Give a file that ends in .py.")
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def load() -> ModuleType:
        sys.modules[name] = module  # dataclasses and pickling look a class's module up here
        loader.exec_module(module)
        return module

    try:
        return _imported(str(path), load, "Correct the file; it has to be importable by itself.")
    except BaseException:  # a user who interrupts it leaves no half of a module either
        sys.modules.pop(name, None)
        raise


def _is_from(module: ModuleType, path: Path) -> bool:
    return Path(str(module.__file__)).resolve() == path.resolve()


def _imported(place: str, load: Callable[[], ModuleType], fix: str) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:  # a user's module raises anything, and one that is a script may exit
        if is_of_memory(error):
            raise
        raise NetworkError(
            f"teacher.network names the module {place!r}, which cannot be imported: {described(error)}.", fix
        ) from error
