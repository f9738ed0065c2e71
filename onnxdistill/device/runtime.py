"""ONNX Runtime itself: found, imported and asked which execution providers it has."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from onnxdistill.errors import FallbackError, MissingPackageError, ProviderError

INSTALL_ONE = "Install one of the extras: pip install 'onnxdistill[cpu]' or pip install 'onnxdistill[gpu]'."

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
}

# It sends tensors to a remote service and runs no graph on this machine.
_REMOTE = "AzureExecutionProvider"


def load_runtime() -> ModuleType:
    """Imports `onnxruntime`, which every command but the help needs, at the latest possible moment.

    Raises:
        MissingPackageError: If no package provides it, or if what is there is damaged.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            raise MissingPackageError("ONNX Runtime is not installed.", INSTALL_ONE) from error
        reason = " ".join(str(error).split())
        raise MissingPackageError(
            f"ONNX Runtime is installed and does not load: {reason}.", "See: onnxdistill doctor."
        ) from error
    if not hasattr(runtime, "InferenceSession"):
        # What is left of the folder after one of two packages that share it was uninstalled.
        raise MissingPackageError(
            "The package onnxruntime is damaged: it has no InferenceSession.",
            "Uninstall every onnxruntime package that `onnxdistill doctor` lists, then install one of them.",
        )
    return runtime


def runtime_errors() -> tuple[type[Exception], ...]:
    """The exception classes of ONNX Runtime's native half, which have no base class of their own."""
    native = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelRequiresCompilation",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(native, name) for name in names if hasattr(native, name))


def available_providers() -> tuple[str, ...]:
    """Full names of the providers compiled into the installed ONNX Runtime that run on this machine.

    A provider that is compiled in need not be usable: its driver or its libraries may be missing.

    Raises:
        MissingPackageError: If ONNX Runtime is not installed.
    """
    return tuple(name for name in load_runtime().get_available_providers() if name != _REMOTE)


def short_name(provider: str) -> str:
    """`"CUDAExecutionProvider"` to `"cuda"`; a name that is not known stays as it is."""
    return next((short for short, full in PROVIDERS.items() if full == provider), provider)


def full_name(provider: str) -> str:
    """`"cuda"` or `"CUDAExecutionProvider"`, in any case, to `"CUDAExecutionProvider"`.

    Raises:
        ProviderError: If there is no such provider; the message has the nearest name.
    """
    asked = provider.lower()
    if asked in PROVIDERS:
        return PROVIDERS[asked]
    # Also a provider that is newer than the table above, where the installed ONNX Runtime has it.
    for full in (*PROVIDERS.values(), *available_providers()):
        if asked == full.lower():
            return full
    near = difflib.get_close_matches(asked, PROVIDERS, n=1)
    raise ProviderError(
        f"There is no execution provider {provider!r}.",
        f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(PROVIDERS)}.",
    )


def usable_provider(provider: str) -> str:
    """The full name of a provider that is compiled into the installed ONNX Runtime.

    Raises:
        ProviderError: If there is no such provider.
        FallbackError: If it is not compiled in; the message names those that are.
        MissingPackageError: If ONNX Runtime is not installed.
    """
    full = full_name(provider)
    available = available_providers()
    if full not in available:
        names = ", ".join(short_name(name) for name in available)
        raise FallbackError(
            f"The installed ONNX Runtime has no execution provider {short_name(full)!r}; it has: {names}.",
            "Choose one of these, or install the ONNX Runtime package that has it.",
        )
    return full
