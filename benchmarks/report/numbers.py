# SPDX-License-Identifier: Apache-2.0
"""Formatting of quantities: three digits and a unit."""

import math

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_RATES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds(value: float) -> str:
    """Format seconds like 1.23 s or 45.6 ms; as minutes from 100 s on."""
    if value >= 100:
        return f"{value / 60:.1f} min"
    for scale, unit in _TIMES:
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{digits(value * 1e6)} µs"


def amount(value: float, unit: str) -> str:
    """Format a number with a decimal prefix: 19.4 TFLOP, 507 MB."""
    for scale, prefix in _RATES:
        if abs(value) >= scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def small(value: float | None) -> str:
    """Format a distance like 1.5e-06; null in the JSON is "not finite"."""
    return "not finite" if value is None else f"{value:.1e}"
