# SPDX-License-Identifier: Apache-2.0
"""Differences between two folders that workload.py wrote: arrays one by one, JSON key by key, else bytes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MISSING = object()


@dataclass(frozen=True)
class Difference:
    """where: the file, and after a colon the array's name or the JSON's keys, joined by dots."""

    where: str
    what: str


def folder_differences(old: Path, new: Path) -> Iterator[Difference]:
    """By name of the file. Links are compared as what they lead to."""
    names = {path.relative_to(root).as_posix() for root in (old, new) for path in files_below(root)}
    for name in sorted(names):
        before, after = old / name, new / name
        if not (before.is_file() and after.is_file()):
            yield Difference(name, "only before" if before.is_file() else "only after")
        elif name.endswith(".npz"):
            yield from _of_values(name, _arrays(before), _arrays(after))
        elif name.endswith(".json"):
            yield from _of_json(name, before.read_bytes(), after.read_bytes())
        elif (sizes := [len(path.read_bytes()) for path in (before, after)])[0] != sizes[1]:
            yield Difference(name, f"{sizes[0]} bytes before, {sizes[1]} after")
        elif before.read_bytes() != after.read_bytes():
            pairs = (np.frombuffer(path.read_bytes(), np.uint8) for path in (before, after))
            yield Difference(name, f"{_unequal(*pairs)} of {sizes[0]} bytes differ")


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def _of_values(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Difference]:
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, MISSING), after.get(key, MISSING)
        if old is MISSING or new is MISSING:
            yield Difference(f"{name}:{key}", "only after" if old is MISSING else "only before")
        elif isinstance(old, np.ndarray):
            if what := _of_arrays(old, new):
                yield Difference(f"{name}:{key}", what)
        elif type(old) is not type(new) or old != new:
            yield Difference(f"{name}:{key}", f"{_shown(old)} before, {_shown(new)} after")


def _of_arrays(old: np.ndarray, new: np.ndarray) -> str:
    """Empty if every bit is equal."""
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return f"{old.dtype} {old.shape} before, {new.dtype} {new.shape} after"
    if old.tobytes() == new.tobytes():
        return ""
    distance = np.abs(old.astype(np.float64) - new.astype(np.float64)).max()
    return f"{_unequal(old, new)} of {old.size} values differ, by {distance:.3g} at most"


def _unequal(old: np.ndarray, new: np.ndarray) -> int:
    return int(np.count_nonzero(old != new))


def _of_json(name: str, before: bytes, after: bytes) -> Iterator[Difference]:
    """Keys that differ; if none does, the text (order of keys, spaces)."""
    old, new = (dict(_leaves(json.loads(text))) for text in (before, after))
    differences = list(_of_values(name, old, new))
    if not differences and before != after:
        differences = [Difference(name, "the same values in another order or form")]
    yield from differences


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys joined by dots → values; lists are values."""
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}" if key else name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
