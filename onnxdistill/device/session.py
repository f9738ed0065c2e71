"""A model opened in ONNX Runtime on the provider that was asked for: `{name: array}` to `{name: array}`."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxdistill.device import runtime
from onnxdistill.device.modelfile import check_model_file, explain_load_failure, plain_message
from onnxdistill.errors import FallbackError, ModelFileError, ProviderError, UsageError

Array = npt.NDArray[Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(np.object_),
}

OptimizationLevel = Literal["disabled", "basic", "extended", "all"]

_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

_QUIET, _WARNINGS = 4, 2

# Where tensors of a provider live that are not in the machine's own memory.
_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}

_MOST_THREADS, _THREADS_PER_CPU = 64, 4


@dataclass(frozen=True)
class SessionSettings:
    """How a model is run.

    Attributes:
        threads: Threads inside one operator; operators run one after the other. Between runs they sleep.
        provider: Short or full name of the execution provider.
        optimization_level: How far ONNX Runtime rewrites the graph before it runs it.
        provider_options: Handed to the provider as they are.
        allow_fallback: Accept that the provider leaves the whole model to the CPU.
        io_binding: A timed run has its inputs and outputs on the provider's device from the start.
        elsewhere: The model is run on another machine, which has other numbers of CPUs.
    """

    threads: int = 1
    provider: str = "cpu"
    optimization_level: OptimizationLevel = "all"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    allow_fallback: bool = False
    io_binding: bool = False
    elsewhere: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"A session needs at least 1 thread, and {self.threads} were asked for.")
        if self.threads > most_threads() and not self.elsewhere:
            raise UsageError(
                f"{self.threads} threads were asked for, and {os.cpu_count() or 1} CPUs are here.",
                f"Ask for at most {most_threads()}; more threads than CPUs are slower anyway.",
            )


@dataclass(frozen=True)
class Port:
    """An input or an output of a model.

    Attributes:
        name: As the model calls it.
        dtype: Of the array; None for what has no numpy counterpart (sequences, maps, bfloat16).
        shape: Sizes; a dimension that is only known when the model runs is a name.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        kind = "?" if self.dtype is None else self.dtype.name
        return f"{self.name} {kind}[{', '.join(map(str, self.shape))}]"


class Session:
    """A model opened in ONNX Runtime. Made by `open_session`.

    Attributes:
        label: The path of the model, for messages.
        inputs: What `run` takes.
        outputs: What `run` returns.
        provider: Full name of the execution provider.
        tells_placement: Whether ONNX Runtime says which nodes run on which provider.
        nodes_by_provider: How many nodes of the optimised graph do, by full name; empty where it does not.
    """

    def __init__(self, native: Any, label: str, provider: str, io_binding: bool = False, device_id: int = 0) -> None:
        self._native = native
        self._io_binding = io_binding
        self._device_id = device_id
        # The last one of outputs that NumPy has no type for.
        self._errors: tuple[type[Exception], ...] = (*runtime.runtime_errors(), RuntimeError)
        self.label = label
        self.provider = provider
        self.inputs = tuple(_port(arg) for arg in native.get_inputs())
        self.outputs = tuple(_port(arg) for arg in native.get_outputs())
        self.tells_placement = hasattr(native, "get_provider_graph_assignment_info")
        self.nodes_by_provider = _placement(native) if self.tells_placement else {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model once.

        Raises:
            UsageError: If a name, a dtype or a shape is not what the model takes.
            ModelFileError: If ONNX Runtime stops while it runs the model.
        """
        return self._explained(self._native.run, feeds, feeds)

    def lend(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """`run` for outputs that are many, read once and forgotten: arrays in ONNX Runtime's own memory, on the CPU.

        They are not copied, and nobody may write to them; their memory is used again once the last of them is gone.

        Raises:
            UsageError: As `run` does.
            ModelFileError: As `run` does.
        """
        self.check_feeds(feeds)
        if any(array.dtype.hasobject for array in feeds.values()):  # text has no place of its own
            return self.run(feeds)
        place = runtime.load_runtime().OrtValue.ortvalue_from_numpy
        given = {name: place(np.require(array, requirements="C")) for name, array in feeds.items()}
        lent = self._explained(self._native.run_with_ort_values, feeds, given)
        return {name: np.from_dlpack(value) for name, value in lent.items()}

    def _explained(
        self, run: Callable[..., Any], feeds: Mapping[str, Array], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.check_feeds(feeds)
        names = [port.name for port in self.outputs]
        try:
            values = run(names, dict(given))
        except self._errors as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise ModelFileError(f"{self.label} does not run with {shapes}: {plain_message(error)}") from error
        return dict(zip(names, values, strict=True))

    def runner(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """The shortest way from Python into one run with these inputs, unchecked: for timing loops."""
        if self._io_binding:
            return functools.partial(self._native.run_with_iobinding, self._bound(feeds))
        return functools.partial(self._native.run, [port.name for port in self.outputs], dict(feeds))

    def shared_runner(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """The same for several threads at once, each of which has places of its own for inputs and outputs."""
        if not self._io_binding:
            return self.runner(feeds)
        places = threading.local()

        def run() -> object:
            if not hasattr(places, "runner"):
                places.runner = self.runner(feeds)
            return places.runner()

        return run

    def end_profiling(self) -> Path:
        """Ends the profile of a session that was opened with one; returns the file."""
        return Path(self._native.end_profiling())

    def _bound(self, feeds: Mapping[str, Array]) -> Any:
        """Inputs and outputs in fixed places of the device's memory, which a CUDA graph needs, too."""
        values = runtime.load_runtime().OrtValue
        # A provider that did not start has no memory either.
        device = _DEVICES.get(self.provider, "cpu") if self.provider in self._native.get_providers() else "cpu"
        number = self._device_id if device != "cpu" else 0
        binding = self._native.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, values.ortvalue_from_numpy(np.ascontiguousarray(array), device, number))
        made = self.run(feeds)
        for port in self.outputs:
            if port.dtype is None or port.dtype.kind == "O":  # no tensor of numbers: it gets a place when it is made
                binding.bind_output(port.name)
                continue
            array = made[port.name]
            place = values.ortvalue_from_shape_and_type(array.shape, array.dtype.type, device, number)
            binding.bind_ortvalue_output(port.name, place)
        return binding

    def check_feeds(self, feeds: Mapping[str, Array]) -> None:
        """Compares inputs with what the model takes.

        Raises:
            UsageError: At the first input that is missing, unknown, or of another dtype or shape.
        """
        takes = f"The model takes {', '.join(map(str, self.inputs))}."
        known = {port.name: port for port in self.inputs}
        if missing := known.keys() - feeds.keys():
            raise UsageError(f"{self.label} gets no value for its input {min(missing)!r}.", takes)
        for name, array in feeds.items():
            if name not in known:
                raise UsageError(f"{self.label} has no input {name!r}.", takes)
            port = known[name]
            if port.dtype is not None and array.dtype != port.dtype:
                raise UsageError(f"{self.label}: the input {name!r} is given as {array.dtype.name}.", takes)
            if not shape_fits(array.shape, port.shape):
                raise UsageError(f"{self.label}: the input {name!r} is given as {list(array.shape)}.", takes)


def most_threads() -> int:
    """Beyond this, threads only cost: each takes memory of its own, and they wait for each other's CPU."""
    return max(_MOST_THREADS, _THREADS_PER_CPU * (os.cpu_count() or 1))


def shape_fits(given: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    """Whether the rank is right and every dimension that the model fixes has its size."""
    return len(given) == len(declared) and all(
        isinstance(size, str) or size == got for got, size in zip(given, declared, strict=True)
    )


def open_session(
    model: Path | bytes,
    settings: SessionSettings | None = None,
    *,
    profile: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> Session:
    """Opens a model on exactly the execution provider that was asked for, or fails.

    ONNX Runtime itself goes on with the CPU, and says so only in its log, when a provider does not start.

    Args:
        model: An .onnx file, or its content.
        settings: One thread on the CPU if left out.
        profile: The beginning of the name of a file, which ONNX Runtime's own profiler writes until `end_profiling`.
        config: Further entries of ONNX Runtime's session configuration.

    Raises:
        ModelFileError: If there is no such file, or if ONNX Runtime cannot load it.
        ProviderError: If the provider is unknown.
        FallbackError: If it is not compiled in, does not start, or takes no node, and that is not allowed.
        MissingPackageError: If ONNX Runtime is not installed.
    """
    settings = settings or SessionSettings()
    path = model if isinstance(model, Path) else None
    if path is not None:
        check_model_file(path)
    native_runtime = runtime.load_runtime()
    provider = _provider(settings)
    label = "the model" if path is None else str(path)
    # RuntimeError: how a provider says that its libraries are missing (TensorRT).
    errors: tuple[type[Exception], ...] = (*runtime.runtime_errors(), RuntimeError)
    options = _options(native_runtime, settings)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        with _quiet(native_runtime, provider):
            native = native_runtime.InferenceSession(
                model if path is None else str(path),
                options,
                providers=[(provider, dict(settings.provider_options))],
                enable_fallback=0,
            )
    except errors as error:
        if not _is_about_provider(error, provider):
            raise explain_load_failure(path, error, native_runtime.__version__) from error
        raise ProviderError(
            f"The execution provider {runtime.short_name(provider)!r} does not take {label}: {plain_message(error)}",
            "See: onnxdistill doctor.",
        ) from error
    session = Session(native, label, provider, settings.io_binding, _device_id(settings))
    if not settings.allow_fallback:
        _check_not_fallen_back(session, native.get_providers())
    return session


def _device_id(settings: SessionSettings) -> int:
    """Which of several devices the provider runs on."""
    number = str(settings.provider_options.get("device_id", 0))  # whoever calls this from Python may give a number
    return int(number) if number.isdecimal() else 0


def _provider(settings: SessionSettings) -> str:
    """The provider that was asked for, or the CPU in its place if that is allowed."""
    full = runtime.full_name(settings.provider)
    if settings.allow_fallback and full not in runtime.available_providers():
        return "CPUExecutionProvider"
    return runtime.usable_provider(full)


def _options(native_runtime: ModuleType, settings: SessionSettings) -> Any:
    options = native_runtime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = native_runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(
        native_runtime.GraphOptimizationLevel, _LEVELS[settings.optimization_level]
    )
    options.log_severity_level = _QUIET
    if settings.threads > 1:
        # Otherwise the workers of one session wait busily for its next run, for ten milliseconds and more, on the CPUs
        # that others need meanwhile. A deployed model's next request comes later as a rule.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


@contextlib.contextmanager
def _quiet(native_runtime: ModuleType, provider: str) -> Iterator[None]:
    # A provider that does not start writes to the default log, which no session option reaches.
    native_runtime.set_default_logger_severity(_QUIET)
    try:
        if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            # Finds CUDA and cuDNN where pip installed them; prints what it does not find.
            with contextlib.redirect_stdout(io.StringIO()):
                native_runtime.preload_dlls()
        yield
    finally:
        native_runtime.set_default_logger_severity(_WARNINGS)


def _is_about_provider(error: Exception, provider: str) -> bool:
    if provider == "CPUExecutionProvider":
        return False
    return isinstance(error, RuntimeError) or type(error).__name__ == "EPFail" or "ExecutionProvider" in str(error)


def _check_not_fallen_back(session: Session, active: list[str]) -> None:
    name = runtime.short_name(session.provider)
    if session.provider not in active:
        raise FallbackError(
            f"The execution provider {name!r} is compiled in and does not start on this machine: "
            f"its device, driver or libraries are missing.",
            "See: onnxdistill doctor.",
        )
    if session.provider != "CPUExecutionProvider" and not session.tells_placement:
        raise ProviderError(
            f"ONNX Runtime {runtime.load_runtime().__version__} does not tell which nodes the execution provider "
            f"{name!r} takes, and all of them may run on the CPU.",
            "Install a newer ONNX Runtime there; bench --allow-fallback times the model as it is.",
        )
    if session.nodes_by_provider and session.provider not in session.nodes_by_provider:
        raise FallbackError(
            f"The execution provider {name!r} takes no node of {session.label}, which would run on the CPU.",
            "Choose the provider cpu, or export the model for this one; bench --allow-fallback times it as it is.",
        )


def _port(arg: Any) -> Port:
    shape = tuple(
        size if isinstance(size, int | str) else f"{arg.name}_{axis}" for axis, size in enumerate(arg.shape or ())
    )
    return Port(arg.name, _DTYPES.get(arg.type), shape)


def _placement(native: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in native.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts
