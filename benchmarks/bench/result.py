# SPDX-License-Identifier: Apache-2.0
"""Result of a whole benchmark, written to a file and read again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.compare import Change
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.text import decode_text, parse_json

BENCH_VERSION = 1
_NUMBERS = re.compile(r"\[[-+\d.e,\s]+\]")

_MAPPINGS = (
    "machine",
    "state_before",
    "state_after",
    "subject",
    "settings",
    "operators",
    "memory",
    "parity",
    "sheets",
)


@dataclass
class BenchResult:
    """Result of one run; JSON values except for measurements and changes.

    machine       constant facts; state_before, state_after: clocks and load around the run
    subject       the bundle: digest, sizes, precisions, motions, bytes of its parts
    settings      the options of the run
    operators     network → operator → seconds of one call, by the backend's profiler
    memory        network → bytes: weights, arrays, scratch (None if not measured), and for the CPU loaded and
                  peak of a process that runs it alone
    growth        points of the sweeps, see sweeps.py
    parity        the report of `lamp-trt verify`, {} without checkpoints; sheets: clip → PNG, base64
    not_measured  missing measurements, each with its reason
    changes       changes against the last of `history`; history: medians of earlier results, oldest first
    """

    machine: dict[str, Any]
    subject: dict[str, Any]
    settings: dict[str, Any]
    state_before: dict[str, Any] = field(default_factory=dict)
    state_after: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    operators: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, dict[str, int | None]] = field(default_factory=dict)
    growth: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, Any] = field(default_factory=dict)
    sheets: dict[str, str] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, name: str, backend: str | None = None) -> Measurement | None:
        """Return the first measurement of that name, and backend if given; None without one."""
        for m in self.measurements:
            if m.name == name and backend in (None, m.backend):
                return m
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "bench_version": BENCH_VERSION,
            **{name: getattr(self, name) for name in _MAPPINGS},
            "measurements": [m.to_json() for m in self.measurements],
            "growth": self.growth,
            "not_measured": self.not_measured,
            "changes": [change.to_json() for change in self.changes],
            "history": self.history,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BenchResult":
        """Read the values of `to_json`. KeyError, TypeError or ValueError for other values."""
        if values["bench_version"] != BENCH_VERSION:
            raise ValueError(f"bench_version is {values['bench_version']}, this reads {BENCH_VERSION}")
        return cls(
            **{name: dict(values[name]) for name in _MAPPINGS},
            measurements=[Measurement.from_json(m) for m in values["measurements"]],
            growth=list(values["growth"]),
            not_measured=list(values["not_measured"]),
            changes=[Change(**change) for change in values["changes"]],
            history=list(values["history"]),
            seconds=float(values["seconds"]),
        )


def result_text(result: BenchResult) -> str:
    """Return the file's contents: strict JSON, lists of numbers on one line each."""
    text = json.dumps(result.to_json(), indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


def read_result(path: Path) -> BenchResult:
    """Read the results of an earlier run. InputError if the file holds none."""
    try:
        return BenchResult.from_json(parse_json(decode_text(path.read_bytes())))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a bench.json.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no results of lamp-trt bench ({error!r:.120}); give the bench.json of a run."
        ) from error
