# SPDX-License-Identifier: Apache-2.0
"""Every layer form and setting in a report: its time, or that it has none."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.tables import Table
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.registry import CANDIDATES, SETTINGS

NOT_MEASURED = "not measured"

NOTE = (
    "Of the largest calls of a step, each form compiled alone. Ratio: to the default form, the slot's first; "
    "of a setting, to the same products with it off."
)


def candidate_table(milliseconds: Mapping[str, Any]) -> Table:
    """milliseconds: by Candidate.title, of those that were timed."""
    rows = [
        (
            candidate.slot,
            candidate.name,
            candidate.replaces or "default",
            _number(milliseconds.get(candidate.title)),
            _ratio(milliseconds, candidate.title, registry.default_of(candidate.slot).title),
        )
        for candidate in CANDIDATES
    ]
    for setting in SETTINGS:
        off, on = setting.title(False), setting.title(True)
        rows += [
            (setting.name, "off", "default", _number(milliseconds.get(off)), _ratio(milliseconds, off, off)),
            (
                setting.name,
                "on",
                setting.replaces,
                _number(milliseconds.get(on)),
                _ratio(milliseconds, on, off),
            ),
        ]
    header = ("layer or setting", "form", "replaces", "ms", "ratio")
    return Table("Layer forms and settings", header, rows, note=NOTE, left=frozenset({0, 1, 2}))


def _number(milliseconds: Any) -> str:
    return NOT_MEASURED if milliseconds is None else f"{milliseconds:.3f}"


def _ratio(milliseconds: Mapping[str, Any], title: str, default: str) -> str:
    known = milliseconds.get(title) is not None and milliseconds.get(default)
    return f"{milliseconds[title] / milliseconds[default]:.3f}" if known else ""
