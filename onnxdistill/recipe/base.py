"""What all tables of a recipe share: how strictly they are read, and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_NAME_BYTES = 200

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# Bounds that no machine of today gets near; what lies beyond is a slip of the keyboard, and would end in a crash.
Batch = Annotated[int, Field(ge=1, le=65536)]


def _names_a_folder(name: str) -> str:
    if not name.isprintable() or name != name.strip() or name in ("", ".", "..") or set(name) & {"/", "\\"}:
        raise ValueError(
            f"name = {name!r}: it names the run folder, so it has letters, but no slashes, no control characters, "
            "and no spaces at its ends"
        )
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise ValueError(f"name = {name[:20]!r}…: it names the run folder; {LONGEST_NAME_BYTES} bytes are the most")
    return name


RunName = Annotated[str, AfterValidator(_names_a_folder)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Table(BaseModel):
    """A table of a recipe: unknown keys, values of another type, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
