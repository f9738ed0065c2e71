"""What all tables of a recipe share: how strictly they are read, and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# Bounds that no machine of today gets near; what lies beyond is a slip of the keyboard, and would end in a crash.
Batch = Annotated[int, Field(ge=1, le=65536)]


class Table(BaseModel):
    """A table of a recipe: unknown keys, values of another type, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
