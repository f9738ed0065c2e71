"""How numbers are written for people, on the console and on pages."""

from __future__ import annotations

from math import isinf

DASH = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Four significant digits without an exponent; a dash where there is no number."""
    if value is None:
        return DASH
    if isinf(value):
        return "\N{INFINITY}"
    # Limits are where rounding makes one digit more.
    limits = ((999.95, 0), (99.995, 1), (9.9995, 2), (0.99995, 3))
    digits = next((digits for limit, digits in limits if abs(value) >= limit), 4)
    return f"{value:,.{digits}f}"


def count_text(count: int) -> str:
    """`115605504` to `116 M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def size_text(size_bytes: int) -> str:
    """A size with a decimal unit and three digits, as `"27.6 kB"`."""
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"
