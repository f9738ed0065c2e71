"""An earlier benchmark as the baseline of a new one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from onnxdistill.device.cases import Case
from onnxdistill.device.host import HostFacts
from onnxdistill.device.jsonfile import read_json
from onnxdistill.device.measuring.openings import Feeds
from onnxdistill.device.result import BenchResult, CaseTiming
from onnxdistill.device.runtime import available_providers, short_name
from onnxdistill.errors import UsageError

_OF_EARLIER, _OTHER_RUNTIME = "Of the earlier benchmark", "The earlier benchmark ran with ONNX Runtime"
_UNKNOWN_DEVICE = "The earlier benchmark does not tell whether the device"
_OF_PROCESSORS = {f"{name}ExecutionProvider" for name in ("CPU", "Xnnpack", "Dnnl")}
_OF_NVIDIA = {f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "NvTensorRTRTX")}

# The interval of an earlier median has to cover what opening the file again changes.
_OPENINGS_NEEDED = 3


def read_result(path: Path) -> BenchResult:
    """Reads what `bench --json` wrote.

    Raises:
        DataError: If the file is missing, no JSON, or no result of this schema version.
    """
    return BenchResult.from_json(read_json(path, "benchmark result", "onnxdistill bench --json"))


def check_same_machine(earlier: BenchResult, host: HostFacts, providers: Collection[str]) -> None:
    """Makes sure that latencies can be compared at all.

    Args:
        earlier: The earlier benchmark.
        host: This machine.
        providers: Full names of those that are asked for here.

    Raises:
        UsageError: If the earlier benchmark ran on another kind of machine.
    """
    used = _OF_NVIDIA & set(providers) and earlier.host.gpus and host.gpus
    for what, before, now in (
        ("processor", earlier.host.cpu, host.cpu),
        ("architecture", earlier.host.architecture, host.architecture),
        ("int8 instructions", earlier.host.int8_features, host.int8_features),
        ("number of usable CPUs", earlier.host.usable_cpus, host.usable_cpus),
        ("limit of CPU time", earlier.host.cpu_limit, host.cpu_limit),
        *([("GPU", earlier.host.gpus, host.gpus)] if used else []),
    ):
        if before != now:
            raise UsageError(
                f"The earlier benchmark ran on another machine: its {what} was {_text(before)}, and here it is "
                f"{_text(now)}.",
                "Measure the baseline here: give its .onnx file to --baseline.",
            )


def doubts_of_earlier(
    earlier: BenchResult, cases: Iterable[CaseTiming], host: HostFacts, providers: Iterable[str]
) -> list[str]:
    """Reasons not to trust a comparison with it, a sentence each.

    Args:
        earlier: The earlier benchmark.
        cases: Those of its cases that others are compared with.
        host: This machine.
        providers: Full names of those that run here.
    """
    own = [doubt for doubt in earlier.shaky if not doubt.startswith((_OF_EARLIER, _OTHER_RUNTIME, _UNKNOWN_DEVICE))]
    own += [f"{case.name}: {doubt}" for case in cases for doubt in case.shaky]
    found = [f"{_OF_EARLIER}: {doubt}" for doubt in dict.fromkeys(own)]
    runtimes = [f"{one.onnxruntime} ({one.onnxruntime_package})" for one in (earlier.host, host)]
    if runtimes[0] != runtimes[1]:
        found.append(f"{_OTHER_RUNTIME} {runtimes[0]}, and this one with {runtimes[1]}: what differs may come from it.")
    told = _OF_NVIDIA if earlier.host.gpus and host.gpus else set()
    if others := sorted(map(short_name, set(providers) - _OF_PROCESSORS - told)):
        found.append(f"{_UNKNOWN_DEVICE} of {' and '.join(others)} was the same.")
    return found


def matching_case(earlier: BenchResult, case: Case) -> CaseTiming:
    """The earlier case in the same setting; if several models have one, that of the same name.

    Raises:
        UsageError: If there is none, or if it cannot be told which, or if it was not opened often enough.
    """
    settings = case.settings
    provider = settings.provider
    if settings.allow_fallback and provider not in available_providers():
        provider = "CPUExecutionProvider"
    asked = (settings.threads, case.batch, provider, settings.optimization_level)
    further = (dict(settings.provider_options), settings.io_binding)
    alike = [
        one
        for one in earlier.cases
        if (one.threads, one.batch, one.provider, one.optimization_level) == asked
        and (one.provider_options, one.io_binding) == further
    ]
    named = [one for one in alike if one.model == case.model]
    found = named if named or len(alike) > 1 else alike
    if not found:
        known = ", ".join(one.name for one in earlier.cases)
        raise UsageError(
            f"The earlier benchmark has no {case.model} with {settings.threads} threads, batch {case.batch}, on "
            f"{short_name(settings.provider)}{_further(case)}; it has: {known}.",
            "Ask for the same settings, or measure the baseline with these.",
        )
    if len(found[0].times_ms) < _OPENINGS_NEEDED:
        raise UsageError(
            f"The earlier benchmark opened {found[0].name} only {len(found[0].times_ms)} times, which is too few for a "
            f"comparison with another process.",
            "Measure the baseline for longer, or give its .onnx file to --baseline.",
        )
    return found[0]


def check_same_inputs(before: CaseTiming, feeds: Feeds) -> None:
    """Makes sure that an earlier case was run on inputs of the same shapes.

    Raises:
        UsageError: If it was not.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    if shapes != before.inputs:
        raise UsageError(
            f"The earlier benchmark ran {before.name} on other inputs: {_text(before.inputs)}; here they are "
            f"{_text(shapes)}.",
            "Measure the baseline on the same inputs, or give its .onnx file to --baseline.",
        )


def _further(case: Case) -> str:
    """The settings that names of cases need not tell."""
    settings = case.settings
    options = [f"{key}={value}" for key, value in sorted(settings.provider_options.items())]
    bound = ["io binding"] if settings.io_binding else []
    return "".join(f", {one}" for one in (f"optimization level {settings.optimization_level}", *options, *bound))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {list(shape)}" for name, shape in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
