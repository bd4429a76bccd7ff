# SPDX-License-Identifier: Apache-2.0
"""SVG elements and axes. Colours are CSS classes, so that the page's light and dark apply."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480
"""Width of every figure, in its own units; small, so that text stays readable on a phone."""
ROW = 20
"""Height of a row of bars."""
SERIES = 6
"""Number of colours, classes s0 to s5."""


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Return an element. `class_` is class, other underscores are hyphens; `content` is markup, attributes
    text."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>"


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def label(x: float, y: float, words: str, anchor: str = "start", class_: str = "label") -> str:
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(x: float, y: float, width: float, height: float, class_: str, tip: str = "") -> str:
    return tag("rect", _tip(tip), x=x, y=y, width=max(width, 0.5), height=height, rx=1.5, class_=class_)


def dot(x: float, y: float, radius: float, class_: str, tip: str = "") -> str:
    return tag("circle", _tip(tip), cx=x, cy=y, r=radius, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> str:
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def _tip(words: str) -> str:
    return tag("title", escape(words)) if words else ""


def figure(height: float, content: Sequence[str], description: str) -> str:
    """Return a whole figure; `description` is for screen readers."""
    return tag(
        "svg",
        tag("title", escape(description)) + "".join(content),
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
    )


def legend(names: Sequence[str], y: float) -> tuple[list[str], float]:
    """Draw names with their colours in as many rows as needed. Returns the elements, and the y below them."""
    drawn, x = [], 0.0
    for number, name in enumerate(names):
        width = 28 + 7 * len(name)
        if x and x + width > WIDTH:
            x, y = 0.0, y + ROW
        drawn += [bar(x, y + 4, 11, 11, f"s{number % SERIES}"), label(x + 16, y + 14, name)]
        x += width
    return drawn, y + ROW + 6


@dataclass(frozen=True)
class Scale:
    """Map of values low..high to positions start..end; `log` for a logarithmic one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return decades of a logarithmic scale, with 2 and 5 of each where there are few; else four to
        eight steps of 1, 2 or 5."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) <= 3 else (1,)
            ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
            first = math.ceil(self.low / step - 1e-9)
            ticks = [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Scale:
    """Return a scale around the values, with a margin. A linear one begins at 0."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.3, high * 1.3, start, end, log=True)
    return Scale(0.0, high * 1.05 or 1.0, start, end)


def x_axis(x: Scale, top: float, bottom: float, words: Callable[[float], str]) -> list[str]:
    """Draw a grid line at every tick and its label below `bottom`."""
    drawn = []
    for tick in x.ticks():
        drawn += [
            line(x(tick), top, x(tick), bottom, "grid"),
            label(x(tick), bottom + 15, words(tick), "middle"),
        ]
    return drawn


def y_axis(y: Scale, left: float, right: float, words: Callable[[float], str]) -> list[str]:
    """Draw a grid line at every tick and its label left of `left`."""
    drawn = []
    for tick in y.ticks():
        drawn += [
            line(left, y(tick), right, y(tick), "grid"),
            label(left - 5, y(tick) + 4, words(tick), "end"),
        ]
    return drawn
