"""Facts of machines, from what their systems say of themselves."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from onnxdistill.device.host import HostFacts, gpus, parse_cpuinfo, read_host
from onnxdistill.device.packages import runtime_distributions

ARM_SERVER = """processor\t: {0}
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {1}
CPU revision\t: 1
"""


def test_arm_servers_are_told_apart_by_the_numbers_of_their_cores() -> None:
    def server(*parts: str) -> str:
        return parse_cpuinfo("\n".join(ARM_SERVER.format(count, part) for count, part in enumerate(parts))).name

    assert server("0xd40", "0xd40") == f"{platform.machine()} 0x41 0xd40 0x1 1"
    assert server("0xd4f") != server("0xd40")
    assert server("0xd0b", "0xd05") == server("0xd05", "0xd0b")
    assert parse_cpuinfo(ARM_SERVER.format(0, "0xd40")).int8_features == ("DOTPROD", "I8MM")
    assert parse_cpuinfo("processor\t: 0\nmodel name\t: A B\n").name == "A B"
    assert parse_cpuinfo("processor\t: 0\n").name == platform.machine()


def test_an_installation_that_was_ended_on_the_way_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = runtime_distributions()
    (tmp_path / "half.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert any(one.metadata["Name"] is None for one in metadata.distributions())
    assert runtime_distributions() == known


def test_gpus_are_known_by_the_models_that_their_driver_lists(tmp_path: Path) -> None:
    assert gpus(tmp_path / "none") == ()
    for slot, model in (("0000:41:00.0", "NVIDIA H100  80GB HBM3"), ("0000:01:00.0", "NVIDIA T4")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 155\nVideo BIOS: \t ??.??\n")
    (tmp_path / "0000:81:00.0").mkdir()
    assert gpus(tmp_path) == ("NVIDIA T4", "NVIDIA H100 80GB HBM3")


def test_facts_of_earlier_releases_tell_of_no_gpus() -> None:
    facts = replace(read_host(), gpus=("NVIDIA T4",))
    assert HostFacts.from_json(facts.to_json()) == facts
    older = facts.to_json()
    del older["gpus"]
    assert HostFacts.from_json(older) == replace(facts, gpus=())
