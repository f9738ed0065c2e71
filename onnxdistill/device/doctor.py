"""What makes ONNX Runtime slow, wrong or unusable on this machine, found before anything is measured."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxdistill.device import host, packages
from onnxdistill.device.probe import probe_provider
from onnxdistill.device.runtime import INSTALL_ONE, available_providers, load_runtime, short_name
from onnxdistill.errors import MissingPackageError

Level = Literal["ok", "warn", "fail"]

_BUSY = 0.5
_VNNI = {"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"}
_ARM_INT8 = {"DOTPROD", "I8MM"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `fail` keeps models from running, `warn` makes them slow or the numbers doubtful.
        subject: What was looked at, in one or two words.
        text: What was found; a sentence.
        fix: What to do about it; empty if there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    fix: str = ""


def diagnose() -> list[Finding]:
    """Looks at everything, in the order in which one thing depends on the one before."""
    installed = packages.runtime_distributions()
    return [
        check_python(),
        *check_runtime_packages(installed),
        *check_retired(packages.version_of("onnxruntime-tools")),
        *check_runtime(),
        check_int8(host.read_processor().int8_features, platform.machine()),
        *check_cpus(os.cpu_count() or 1, host.usable_cpus(), host.cpu_limit(), os.environ),
        *check_load(host.load_average(), host.usable_cpus()),
        *check_compress(),
    ]


def check_python() -> Finding:
    """Version and word size of Python."""
    bits = 64 if sys.maxsize > 2**32 else 32
    text = f"{platform.python_implementation()} {platform.python_version()}, {bits} bits."
    if bits == 32:
        return Finding("fail", "Python", text, "Install a 64-bit Python; ONNX Runtime has no other packages.")
    return Finding("ok", "Python", text)


def check_runtime_packages(installed: Mapping[str, str]) -> list[Finding]:
    """Exactly one distribution may own the folder `onnxruntime`."""
    names = ", ".join(f"{name} {version}" for name, version in installed.items())
    if not installed:
        return [Finding("fail", "packages", "No ONNX Runtime package is installed.", INSTALL_ONE)]
    if len(installed) == 1:
        return [Finding("ok", "packages", f"{names}.")]
    return [
        Finding(
            "fail",
            "packages",
            f"{names} are installed together and overwrite each other's files.",
            f"Uninstall all of them (pip uninstall {' '.join(installed)}), then install one.",
        )
    ]


def check_retired(version: str | None) -> list[Finding]:
    """The retired package of tools, which tutorials still name."""
    if version is None:
        return []
    return [
        Finding(
            "warn",
            "packages",
            f"onnxruntime-tools {version} is retired and no longer follows ONNX Runtime.",
            "Uninstall it; its successors are onnxruntime.quantization, onnxruntime.transformers and "
            "onnxruntime.tools.",
        )
    ]


def check_runtime() -> list[Finding]:
    """ONNX Runtime loads, and every provider that is compiled in runs a small model without falling back."""
    try:
        version = load_runtime().__version__
    except MissingPackageError as error:
        return [Finding("fail", "ONNX Runtime", error.what, error.fix)]
    findings = [Finding("ok", "ONNX Runtime", f"Version {version} loads.")]
    for provider in available_providers():
        name = short_name(provider)
        wrong = probe_provider(provider)
        if not wrong:
            findings.append(Finding("ok", name, "Runs a small model, with the right result."))
        else:
            findings.append(_unusable(name, wrong))
    return findings


def _unusable(name: str, wrong: str) -> Finding:
    if name == "cpu":
        return Finding("fail", name, wrong, "Reinstall ONNX Runtime.")
    fixes = {
        "cuda": "If this machine has an NVIDIA GPU, check nvidia-smi and install CUDA and cuDNN: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'.",
        "tensorrt": "If TensorRT is wanted, install it along with CUDA and cuDNN.",
    }
    return Finding("warn", name, wrong, fixes.get(name, "Install the driver and the libraries of this provider."))


def check_int8(features: Sequence[str] | None, architecture: str) -> Finding:
    """Whether int8 models are fast here, and whether they can saturate."""
    if features is None:
        return Finding("warn", "int8", "This system does not tell which int8 instructions the processor has.")
    names = ", ".join(features) or "none"
    if _VNNI & set(features):
        return Finding("ok", "int8", f"{names}: int8 products are added up in 32 bits, fast and without saturation.")
    if _ARM_INT8 & set(features):
        return Finding("ok", "int8", f"{names}: int8 products are added up in 32 bits, fast and without saturation.")
    if architecture.lower() in ("x86_64", "amd64"):
        return Finding(
            "warn",
            "int8",
            f"{names}, without VNNI: pairs of uint8 x int8 products are added up in 16 bits "
            "and can saturate, and int8 may be slower than float.",
            "Quantize with reduced range (7-bit weights), and compare the accuracy on this machine.",
        )
    return Finding("warn", "int8", f"{names}: int8 may be slower than float here.", "Measure before shipping int8.")


def check_cpus(logical: int, usable: int, limit: float | None, environment: Mapping[str, str]) -> list[Finding]:
    """How many CPUs there are to run on, and what holds threads back."""
    if limit is not None and limit < usable:
        findings = [
            Finding(
                "warn",
                "CPUs",
                f"The container may use {limit:g} CPUs' worth of time on {usable} CPUs, then has to wait.",
                f"Use --threads {max(1, int(limit))} at most.",
            )
        ]
    elif usable < logical:
        findings = [Finding("warn", "CPUs", f"This process may run on {usable} of {logical} logical CPUs.",
                            f"Use --threads {usable} at most.")]  # fmt: skip
    else:
        findings = [Finding("ok", "CPUs", f"{logical} logical CPUs, all of them usable.")]
    if threads := environment.get("OMP_NUM_THREADS"):
        findings.append(
            Finding(
                "ok",
                "threads",
                f"OMP_NUM_THREADS is {threads}: it holds for PyTorch; ONNX Runtime does not read it.",
                "Set the threads of a benchmark with --threads.",
            )
        )
    return findings


def check_load(load: float | None, usable: int) -> list[Finding]:
    """Whether other processes would disturb a measurement now."""
    if load is None:
        return []
    text = f"Load average {load:g} over the last minute, on {usable} usable CPUs."
    if load > _BUSY * usable:
        return [Finding("warn", "load", text, "Wait until the machine is idle before measuring.")]
    return [Finding("ok", "load", text)]


def check_compress() -> list[Finding]:
    """What `onnxdistill compress` needs on top, from metadata only."""
    versions = {name: packages.version_of(name) for name in packages.extra_distributions("onnxdistill", "compress")}
    missing = [name for name, version in versions.items() if version is None]
    install = "pip install 'onnxdistill[compress]'"
    if missing and versions.get("torch") is None:
        return [Finding("ok", "compress", "The extra is not installed: bench and doctor work without it.",
                        f"To compress models here: {install}.")]  # fmt: skip
    if missing:
        return [Finding("warn", "compress", f"Missing: {', '.join(missing)}.", f"Install the extra: {install}.")]
    if not versions:
        return []
    return [check_torch_pair(versions["torch"], versions["torchvision"])]


def check_torch_pair(torch: str | None, torchvision: str | None) -> Finding:
    """Each torchvision works with exactly one torch."""
    pair = f"torch {torch}, torchvision {torchvision}"
    needed = packages.exact_requirement("torchvision", "torch")
    if needed is None or torch is None or torch.partition("+")[0] == needed.partition("+")[0]:
        return Finding("ok", "compress", f"{pair}.")
    return Finding(
        "fail",
        "compress",
        f"{pair}: this torchvision is made for torch {needed}.",
        f"Install the pair: pip install torch=={needed} torchvision=={torchvision}.",
    )
