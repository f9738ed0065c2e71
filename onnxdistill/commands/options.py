"""How options read that are more than a word or a number."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Literal

import click

from onnxdistill.device.verdicts import Slo, parse_slo
from onnxdistill.errors import UsageError

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # generic since click 8.2 only
    ParamType = click.ParamType


class Several(ParamType):
    """`1,2,4`: values of one kind, separated by commas.

    Args:
        kind: Of each value.
    """

    def __init__(self, kind: ParamType) -> None:
        self.kind = kind
        self.name = f"{kind.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """A list of the values, each once."""
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return list(dict.fromkeys(self.kind.convert(part, param, ctx) for part in parts))


class Percent(ParamType):
    """`5%`, as the share 0.05."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share."""
        if isinstance(value, float):
            return value
        number = str(value).strip()
        try:
            share = float(number.removesuffix("%")) / 100
        except ValueError:
            share = inf
        if not number.endswith("%") or not abs(share) < inf:
            self.fail(f"{value!r} does not read as 5%.", param, ctx)
        return share


class Shape(ParamType):
    """`NAME=1x3x32x32`; a name may itself have an equals sign."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Name and sizes."""
        if isinstance(value, tuple):
            return value
        name, _, sizes = str(value).rpartition("=")
        parts = sizes.lower().split("x")
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} does not read as NAME=1x3x32x32.", param, ctx)
        return name, tuple(int(part) for part in parts)


class ProviderOption(ParamType):
    """`cuda.KEY=VALUE`."""

    name = "provider option"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, str]:
        """Provider, key and value."""
        if isinstance(value, tuple):
            return value
        left, equals, setting = str(value).partition("=")
        provider, point, key = left.partition(".")
        if not (provider and point and key and equals):
            self.fail(f"{value!r} does not read as PROVIDER.KEY=VALUE, such as cuda.device_id=1.", param, ctx)
        return provider, key, setting


class Bound(ParamType):
    """`p99=20ms`."""

    name = "slo"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Slo:
        """The bound."""
        if isinstance(value, Slo):
            return value
        try:
            return parse_slo(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Rate(ParamType):
    """`200/s`, `200`, or `max`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Literal["max"]:
        """Requests a second."""
        if value == "max":
            return "max"
        if isinstance(value, float):
            return value
        try:
            rate = float(str(value).removesuffix("/s"))
        except ValueError:
            rate = 0.0
        if not 0 < rate < inf:
            self.fail(f"{value!r} does not read as 200/s, or as max.", param, ctx)
        return rate


class Minutes(ParamType):
    """`90s`, `30m` or `2h`, in minutes."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Minutes."""
        if isinstance(value, float):
            return value
        number, unit = str(value)[:-1], str(value)[-1:]
        try:
            minutes = float(number) * {"s": 1 / 60, "m": 1, "h": 60}[unit]
        except (ValueError, KeyError):
            minutes = 0.0
        if not 0 < minutes < inf:
            self.fail(f"{value!r} does not read as 90s, 30m or 2h.", param, ctx)
        return minutes
