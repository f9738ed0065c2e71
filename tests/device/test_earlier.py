"""Whether an earlier benchmark says anything of this machine, by facts of machines with GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.earlier import check_same_machine, doubts_of_earlier
from onnxdistill.device.places import key_of
from onnxdistill.device.result import BenchResult
from onnxdistill.errors import UsageError
from tests.device.conftest import MakeModel

CUDA, CPU, DIRECTML = (f"{name}ExecutionProvider" for name in ("CUDA", "CPU", "Dml"))
_UNKNOWN = "The earlier benchmark does not tell whether the device of cuda was the same."


@pytest.fixture
def earlier(make_model: MakeModel) -> BenchResult:
    """Of a machine with two GPUs."""
    result = bench([make_model()], runs=5)
    return replace(result, host=replace(result.host, gpus=("NVIDIA T4", "NVIDIA T4")), shaky=())


def test_latencies_of_another_gpu_are_not_compared_where_one_is_used(earlier: BenchResult) -> None:
    other = replace(earlier.host, gpus=("NVIDIA H100",))
    with pytest.raises(UsageError, match="its GPU was NVIDIA T4, NVIDIA T4, and here it is NVIDIA H100"):
        check_same_machine(earlier, other, [CPU, CUDA])
    check_same_machine(earlier, other, [CPU])
    check_same_machine(earlier, earlier.host, [CUDA])
    check_same_machine(earlier, replace(earlier.host, gpus=()), [CUDA])  # which its system does not tell


def test_what_is_not_known_of_devices_is_told(earlier: BenchResult) -> None:
    assert doubts_of_earlier(earlier, [], earlier.host, [CPU, CUDA]) == []
    assert doubts_of_earlier(earlier, [], replace(earlier.host, gpus=()), [CUDA]) == [_UNKNOWN]
    (doubt,) = doubts_of_earlier(earlier, [], earlier.host, [CUDA, DIRECTML])
    assert "the device of dml was" in doubt


def test_what_was_measured_with_another_gpu_does_not_count(earlier: BenchResult) -> None:
    keys = {key_of(replace(earlier.host, gpus=gpus)) for gpus in ((), ("NVIDIA T4",), ("NVIDIA H100",))}
    assert len(keys) == 3
