"""What a compressed network is beside its weights, as plain data, and the network rebuilt from it.

A pruned or factorized module is no longer what its class builds: sizes are smaller, blocks are gone, layers are pairs.
The difference from the freshly built module is written down here, so that a file of tensors and plain values brings
the module back, without a trace and without unpickling code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError, is_of_memory

Structure = dict[str, Any]
"""`replaced`: layers by path; `attributes`: values by path and name; `buffers`: those that no state dict has;
`frozen`: parameters that are not trained."""

# At the end of the name of a module that is a user's file: which version of it.
_HASHES = re.compile(r"_[0-9a-f]{16}(_\d+)?$")

_REBUILD = "Rebuild it with the version of the network that it was made from."


def structure_of(network: nn.Module, original: nn.Module) -> Structure:
    """What has to be changed in `original` before it can load the weights of `network`.

    Args:
        network: Made from a network like `original` by removing channels or blocks, or by low-rank pairs.
        original: As its class builds it.

    Returns:
        Dicts, lists, plain values and tensors, such as `torch.load(weights_only=True)` reads.

    Raises:
        NetworkError: If they differ in something else.
    """
    before, after = dict(original.named_modules()), dict(network.named_modules())
    replaced: dict[str, Any] = {}
    attributes: dict[str, dict[str, Any]] = {}
    for path, module in after.items():
        if any(path.startswith(f"{outer}.") for outer in replaced):
            continue
        counterpart = before.get(path)
        if counterpart is None or _class_of(counterpart) != _class_of(module):
            replaced[path] = _description(path, module)
        elif changed := _changed_attributes(counterpart, module):
            attributes[path] = changed
    lost = [path for path in before.keys() - after.keys() if not any(path.startswith(f"{p}.") for p in replaced)]
    if lost:
        raise NetworkError(f"{min(lost)} of the network has no counterpart in what it became.", _REBUILD)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    buffers = _changed_buffers(original, network)
    return {"replaced": replaced, "attributes": attributes, "buffers": buffers, "frozen": frozen}


def rebuild(original: nn.Module, structure: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The compressed network again: an ordinary module in evaluation mode.

    Args:
        original: As its class builds it; not changed.
        structure: Of `structure_of`.
        state: The state dict of the compressed network.

    Raises:
        NetworkError: If they do not belong together.
    """
    network = copy.deepcopy(original)
    try:
        for path, description in structure["replaced"].items():
            network.set_submodule(path, _module(description))
        for path, values in structure["attributes"].items():
            for name, value in values.items():
                setattr(network.get_submodule(path), name, value)
        for path, buffer in structure["buffers"].items():
            owner, _, name = path.rpartition(".")
            network.get_submodule(owner)._buffers[name] = buffer.clone()
        _resize(network, state)
        network.load_state_dict(state)  # with the versions of its modules
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in structure["frozen"] and parameter.is_floating_point())
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if is_of_memory(error):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NetworkError(
            f"{type(original).__name__} cannot take the structure and the weights: {first[:200]}.", _REBUILD
        ) from error
    return network.eval()


def _resize(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every tensor the shape and type that it has in the state dict; what was shared stays shared."""
    new: dict[int, Tensor] = {}
    for path, module in network.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                wanted = state.get(f"{path}.{name}" if path else name)
                if old is None or wanted is None or (old.shape, old.dtype) == (wanted.shape, wanted.dtype):
                    continue
                if id(old) not in new:
                    empty = torch.empty(wanted.shape, dtype=wanted.dtype)
                    new[id(old)] = nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty
                tensors[name] = new[id(old)]


def _class_of(module: nn.Module) -> tuple[str, str]:
    """By name: a file that is imported twice, or that has changed since, makes its classes twice."""
    return _HASHES.sub("", type(module).__module__), type(module).__qualname__


def _changed_attributes(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Sizes and the like; a module's tensors, submodules and hooks are not among its plain attributes."""
    changed: dict[str, Any] = {}
    for name, value in vars(after).items():
        if name.startswith("_") or name == "training" or not _is_plain(value):
            continue
        old = vars(before).get(name)
        if type(old) is not type(value) or old != value:
            changed[name] = value
    return changed


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _changed_buffers(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    kept = after.state_dict().keys()
    old = dict(before.named_buffers(remove_duplicate=False))
    return {
        path: buffer.clone()
        for path, buffer in after.named_buffers(remove_duplicate=False)
        if path not in kept and (path not in old or not torch.equal(old[path], buffer))
    }


def _description(path: str, module: nn.Module) -> dict[str, Any]:
    """A layer that stands where another one stood."""
    match module:
        case nn.Identity():
            return {"layer": "Identity"}
        case nn.Sequential():
            return {"layer": "Sequential", "layers": [_description(path, layer) for layer in module]}
        case nn.Linear():
            sizes = {"in_features": module.in_features, "out_features": module.out_features}
            return {"layer": "Linear", **sizes, "bias": module.bias is not None}
        case nn.Conv2d():
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            values = {name: getattr(module, name) for name in names}
            return {"layer": "Conv2d", **values, "bias": module.bias is not None}
    raise NetworkError(f"{path} became a {type(module).__name__}, which cannot be written down.", _REBUILD)


def _module(description: Mapping[str, Any]) -> nn.Module:
    values = {name: value for name, value in description.items() if name != "layer"}
    match description["layer"]:
        case "Identity":
            return nn.Identity()
        case "Sequential":
            return nn.Sequential(*map(_module, values["layers"]))
        case "Linear":
            return nn.Linear(**values)
        case "Conv2d":
            return nn.Conv2d(**values)
    raise ValueError(f"it holds an unknown layer {description['layer']!r}")
