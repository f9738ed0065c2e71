from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.costs.coldness import Coldness, measure_coldness
from onnxdistill.device.costs.deviceprofile import DeviceProfile, profile_device, read_device_profile
from onnxdistill.device.costs.layers import DEPTHWISE, Layer, LayerKind
from onnxdistill.device.costs.measuring import LayerClock
from onnxdistill.device.costs.models import profile_models
from onnxdistill.device.jsonfile import write_json
from onnxdistill.device.onnxbytes import Node, Value, model_bytes
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import DataError, UsageError
from tests.device.costs.models import network

KIND = LayerKind("int8", (3, 3), (1, 1), 1, (1, 4, 4))


@pytest.fixture(scope="module")
def coldness() -> Coldness:
    return measure_coldness(LayerClock(SessionSettings(), "uint8"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coldness: Coldness) -> Path:
    """An empty one; what each profile begins with is measured once, and every time it is told from the last."""
    numbers = count(1)

    def measured(_: LayerClock) -> Coldness:
        return replace(coldness, ms_per_byte=coldness.ms_per_byte + next(numbers) * 1e-15)

    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("onnxdistill.device.costs.deviceprofile.measure_coldness", measured)
    return tmp_path / "cache"


class Heard:
    def __init__(self) -> None:
        self.kinds: dict[LayerKind, int] = {}

    def __call__(self, kind: LayerKind, widths: int) -> None:
        self.kinds[kind] = widths


def test_only_what_is_lacking_is_measured() -> None:
    first, second, third = Heard(), Heard(), Heard()
    layer = Layer("a", KIND, 16, 32)
    profile = profile_device([layer, Layer("b", KIND, 16, 32)], SessionSettings(), 16, on_kind=first)
    assert first.kinds == {KIND: 2}
    again = profile_device([layer], SessionSettings(), 16, on_kind=second)
    assert second.kinds == {}
    assert again.surfaces == profile.surfaces
    assert again.coldness == profile.coldness
    wider = profile_device([Layer("a", KIND, 16, 64)], SessionSettings(), 16, on_kind=third)
    assert third.kinds == {KIND: 2}
    assert wider.surfaces[KIND].points_ms.keys() == {(16, 16), (16, 32), (16, 48), (16, 64)}
    assert wider.time_ms(layer) == profile.time_ms(layer)


def test_layers_are_measured_once_more_after_all_others_and_the_lower_time_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the first kind was measured for the first time, the machine was busy."""
    asked: list[LayerKind] = []
    other = replace(KIND, kernel=(1, 1))

    def times_ms(_: LayerClock, kind: LayerKind, widths: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        asked.append(kind)
        return dict.fromkeys(widths, {1: 9.0, 2: 2.0, 3: 1.0, 4: 3.0}[len(asked)])

    monkeypatch.setattr(LayerClock, "times_ms", times_ms)
    layers = [Layer("a", KIND, 16, 16), Layer("b", other, 16, 16)]
    profile = profile_device(layers, SessionSettings(), 16)
    assert asked == [KIND, other, KIND, other]
    assert [profile.time_ms(layer) for layer in layers] == [1.0, 2.0]
    # That is what is kept; and what is known is not measured again.
    assert profile_device(layers, SessionSettings(), 16).surfaces == profile.surfaces
    assert len(asked) == 4


def test_finer_steps_than_before_are_measured() -> None:
    first, second = Heard(), Heard()
    layer = Layer("a", KIND, 16, 32)
    profile_device([layer], SessionSettings(), 16, on_kind=first)
    finer = profile_device([layer], SessionSettings(), 8, on_kind=second)
    assert (first.kinds, second.kinds) == ({KIND: 2}, {KIND: 6})
    assert finer.surfaces[KIND].points_ms.keys() == {(one, other) for one in (8, 16) for other in (8, 16, 24, 32)}


def test_grouped_layers_keep_their_groups_and_a_depthwise_layer_has_one_width() -> None:
    grouped, depthwise = replace(KIND, groups=16), replace(KIND, groups=DEPTHWISE)
    layers = [Layer("a", grouped, 32, 32), Layer("b", depthwise, 32, 32)]
    profile = profile_device(layers, SessionSettings(), 8, cached=False)
    assert profile.surfaces[grouped].points_ms.keys() == {(16, 16), (16, 32), (32, 16), (32, 32)}
    assert all(one == other for one, other in profile.surfaces[depthwise].points_ms)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 0}', '{"schema_version": 5, "layers": 3}'])
def test_a_damaged_cache_is_measured_anew(cache: Path, content: str) -> None:
    layer = Layer("a", KIND, 16, 16)
    profile_device([layer], SessionSettings(), 16)
    (file,) = (cache / "devices").iterdir()
    file.write_text(content)
    heard = Heard()
    assert profile_device([layer], SessionSettings(), 16, on_kind=heard).time_ms(layer) > 0
    assert heard.kinds == {KIND: 1}


def test_the_cache_is_not_touched_where_nothing_shall_stay(cache: Path) -> None:
    profile_device([Layer("a", KIND, 16, 16)], SessionSettings(), 16, cached=False)
    assert not cache.exists()


def test_other_settings_are_another_machine(cache: Path) -> None:
    for threads in (1, 2):
        profile_device([Layer("a", KIND, 16, 16)], SessionSettings(threads=threads), 16)
    assert len(list((cache / "devices").iterdir())) == 2


def test_a_profile_is_written_and_read(tmp_path: Path) -> None:
    profile = profile_device([Layer("a", KIND, 16, 16)], SessionSettings(), 16)
    write_json(tmp_path / "device.json", profile.to_json())
    assert read_device_profile(tmp_path / "device.json") == DeviceProfile.from_json(
        json.loads(json.dumps(profile.to_json()))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "is no device profile"),
        ("{}", "has schema version None; this release reads 5"),
        ('{"schema_version": 5}', "The device profile is damaged"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_device_profile(tmp_path / "x.json")


def test_all_layers_of_models_in_all_precisions(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    profile = profile_models(
        [network(tmp_path / "m.onnx", 16)],
        batch=2,
        step=16,
        on_progress=lambda _kind, done, total: told.append((done, total)),
    )
    assert len(profile.surfaces) == 10
    assert {kind.places[0] for kind in profile.surfaces} == {2}
    assert told == [(float(done), 20.0) for done in range(20)]


def test_models_without_layers_and_numbers_without_sense(tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="at least 1 item"):
        profile_models([model], batch=0)
    with pytest.raises(UsageError, match="multiples of at least 1"):
        profile_models([model], step=0)
    x, y = (Value(name, "float32", (1, 4)) for name in "xy")
    (tmp_path / "relu.onnx").write_bytes(model_bytes([Node("Relu", ("x",), ("y",))], [x], [y], {}))
    with pytest.raises(UsageError, match="has neither convolutions nor products with weights"):
        profile_models([tmp_path / "relu.onnx"])
    weights = {"w": np.zeros((4, 4, 2, 2), np.float32)}
    values = [Value("x", "float32", (1, 4, 8, 8))], [Value("y", "float32", (1, 4, 16, 16))]
    up = Node("ConvTranspose", ("x", "w"), ("y",), {"strides": [2, 2]})
    (tmp_path / "up.onnx").write_bytes(model_bytes([up], *values, weights))
    with pytest.raises(UsageError, match=r"None of the layers is computed in int8\. Measure them in float32\."):
        profile_models([tmp_path / "up.onnx"], precisions=["int8"])
