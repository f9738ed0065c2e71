"""The facts of the machine that a measurement depends on; nothing that names the machine or its user."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxdistill.device.packages import runtime_distributions
from onnxdistill.device.runtime import available_providers, load_runtime

# What Linux calls the instructions that int8 kernels are written with: x86 flags, then ARM features.
_LINUX_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
}
_ARM_KEYS = ("implementer", "part", "variant", "revision")
_MAC_FLAGS = {
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX512F",
    "hw.optional.avx512vnni": "AVX512-VNNI",
    "hw.optional.arm.FEAT_DotProd": "DOTPROD",
    "hw.optional.arm.FEAT_I8MM": "I8MM",
}

_X86 = frozenset({"x86_64", "amd64"})


@dataclass(frozen=True)
class HostFacts:
    """What a timing on this machine depends on.

    Attributes:
        cpu: Name of the processor.
        architecture: For example `x86_64` or `aarch64`.
        physical_cores: None where the system does not tell.
        logical_cpus: All of them.
        usable_cpus: Those that this process may run on.
        cpu_limit: CPUs' worth of time that a container may use; None without a limit.
        memory_bytes: Of the machine; None where the system does not tell.
        os: Name and release.
        python: Version.
        onnxruntime: Version.
        onnxruntime_package: The distribution that it was installed from, with others that overwrite it.
        providers: Execution providers that are compiled in, by full name.
        int8_features: Instructions that int8 kernels use; None where the system does not tell.
        load_average: Processes that wanted to run in the last minute; None where the system does not tell.
        gpus: Models of NVIDIA's that their driver lists; none where it does not tell.
    """

    cpu: str
    architecture: str
    physical_cores: int | None
    logical_cpus: int
    usable_cpus: int
    cpu_limit: float | None
    memory_bytes: int | None
    os: str
    python: str
    onnxruntime: str
    onnxruntime_package: str
    providers: tuple[str, ...]
    int8_features: tuple[str, ...] | None
    load_average: float | None
    gpus: tuple[str, ...] = ()

    @property
    def is_x86(self) -> bool:
        """Whether its kernels take unsigned activations: signed ones are rewritten and slower."""
        return self.architecture.lower() in _X86

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostFacts:
        """The inverse of `to_json`."""
        told = {"gpus": (), **data}  # which earlier releases did not tell
        values: dict[str, Any] = {field.name: told[field.name] for field in dataclasses.fields(cls)}
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        values["cpu"] = _on_one_line(str(values["cpu"]))
        return cls(**values)


@dataclass(frozen=True)
class CpuTimes:
    """What the processors of this machine have done so far.

    Attributes:
        wall_s: Of a clock that starts anywhere.
        busy_s: Seconds of work, of all processors and all processes; what a virtual machine's host took is in it.
        own_s: Seconds of work of this process and those that it has started and seen the end of.
    """

    wall_s: float
    busy_s: float
    own_s: float

    def others_until(self, later: CpuTimes) -> float:
        """How many processors other processes kept busy from now until then, on average."""
        wall_s = later.wall_s - self.wall_s
        others_s = (later.busy_s - self.busy_s) - (later.own_s - self.own_s)
        return max(0.0, others_s / wall_s) if wall_s > 0 else 0.0


def read_cpu_times() -> CpuTimes | None:
    """Reads them now; None where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, hardware, software, stolen = map(int, fields[1:9])
    ticks = user + nice + system + hardware + software + stolen
    own = os.times()
    return CpuTimes(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(own[:4]))


@dataclass(frozen=True)
class Processor:
    """The part of the facts that does not need ONNX Runtime.

    Attributes:
        name: Of the processor.
        physical_cores: None where the system does not tell.
        int8_features: None where the system does not tell.
    """

    name: str
    physical_cores: int | None
    int8_features: tuple[str, ...] | None


def read_host() -> HostFacts:
    """Reads the facts of this machine now.

    Raises:
        MissingPackageError: If ONNX Runtime is not installed.
    """
    processor = read_processor()
    return HostFacts(
        cpu=_on_one_line(processor.name),
        architecture=platform.machine(),
        physical_cores=processor.physical_cores,
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        cpu_limit=cpu_limit(),
        memory_bytes=memory_bytes(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=load_runtime().__version__,
        onnxruntime_package=" + ".join(f"{name} {version}" for name, version in runtime_distributions().items()),
        providers=available_providers(),
        int8_features=processor.int8_features,
        load_average=load_average(),
        gpus=gpus(),
    )


def _on_one_line(name: str) -> str:
    """Some processors' names have several spaces in a row, which no message keeps."""
    return " ".join(name.split())


def read_processor() -> Processor:
    """Name, cores and int8 instructions of the processor."""
    if sys.platform == "linux":
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if sys.platform == "darwin":
        cores = _sysctl("hw.physicalcpu")
        return Processor(
            name=_sysctl("machdep.cpu.brand_string") or platform.machine(),
            physical_cores=int(cores) if cores.isdigit() else None,
            int8_features=tuple(label for key, label in _MAC_FLAGS.items() if _sysctl(key) == "1"),
        )
    return Processor(platform.processor() or platform.machine(), None, None)


def parse_cpuinfo(text: str) -> Processor:
    """Reads the content of Linux's /proc/cpuinfo, of x86 or of ARM."""
    blocks: list[dict[str, str]] = []
    for block in text.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        blocks.append({key.strip(): value.strip() for key, _, value in pairs})
    first = blocks[0]
    name = next((block[key] for block in blocks for key in ("model name", "Model", "Hardware") if key in block), "")
    if not name:  # servers with ARM processors tell only numbers
        numbers = {" ".join(block.get(f"CPU {key}", "") for key in _ARM_KEYS).strip() for block in blocks}
        name = f"{platform.machine()} {', '.join(sorted(filter(None, numbers)))}".strip()
    cores = {(block["physical id"], block["core id"]) for block in blocks if "core id" in block}
    flags = (first.get("flags") or first.get("Features") or "").split()
    features = tuple(label for flag, label in _LINUX_FLAGS.items() if flag in flags) if flags else None
    return Processor(name, len(cores) or None, features)


def usable_cpus() -> int:
    """Logical CPUs that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the container may use, from Linux control groups; None without a limit."""
    unified, quota_file, period_file = (
        root / "cpu.max",
        root / "cpu/cpu.cfs_quota_us",
        root / "cpu/cpu.cfs_period_us",
    )
    if unified.is_file():
        quota, period = unified.read_text().split()
    elif quota_file.is_file() and period_file.is_file():
        quota, period = quota_file.read_text().strip(), period_file.read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def gpus(folder: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Models of the NVIDIA GPUs that Linux' driver lists, in the order of their slots."""
    found = []
    for file in sorted(folder.glob("*/information")):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # a container may see the folder and not the file
            continue
        pairs = (line.partition(":") for line in lines)
        found += [_on_one_line(value) for key, _, value in pairs if key.strip() == "Model"]
    return tuple(found)


def load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


def _sysctl(key: str) -> str:
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
