# SPDX-License-Identifier: Apache-2.0
"""torch.profiler's trace of one step → its kernels, their kinds, and the gaps between them.

A trace is the JSON that `export_chrome_trace` writes: {"traceEvents": [{"cat", "name", "ts", "dur",
"args"}]}, times in microseconds. A kernel names the operator that launched it by "External id".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lamp_trt.benchmarks.proof.profile.kinds import COPIES, Shape, kernel_kind

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Launch:
    """One kernel or copy on the device; microseconds."""

    name: str
    kind: str
    start_us: float
    us: float


@dataclass(frozen=True)
class Operator:
    """A torch operator of the trace with the shapes of its inputs, () for what is no tensor."""

    name: str
    shapes: tuple[Shape, ...]


def launches(trace: Mapping[str, Any]) -> list[Launch]:
    """In order of their start; empty if the profiler saw nothing on the device."""
    events = [event for event in trace.get("traceEvents", ()) if event.get("ph") == "X"]
    operators = _operators(events)
    found = []
    for event in events:
        if event.get("cat") not in ON_DEVICE:
            continue
        operator = operators.get(event.get("args", {}).get("External id"), Operator("", ()))
        kind = COPIES
        if event["cat"] == "kernel":
            kind = kernel_kind(event["name"], operator.name, operator.shapes)
        found.append(Launch(event["name"], kind, float(event["ts"]), float(event["dur"])))
    return sorted(found, key=lambda launch: launch.start_us)


def busy_us(found: Iterable[Launch]) -> float:
    """Of the device: overlapping launches count once."""
    busy = end = 0.0
    for launch in sorted(found, key=lambda launch: launch.start_us):
        stop = launch.start_us + launch.us
        busy += max(0.0, stop - max(launch.start_us, end))
        end = max(end, stop)
    return busy


def span_us(found: Iterable[Launch]) -> float:
    """From the first start to the last end."""
    launched = list(found)
    if not launched:
        return 0.0
    return max(x.start_us + x.us for x in launched) - min(x.start_us for x in launched)


def _operators(events: Iterable[Mapping[str, Any]]) -> dict[Any, Operator]:
    """By external id. An id belongs to one operator."""
    found = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "cpu_op" and "External id" in arguments:
            shapes = tuple(tuple(shape) for shape in arguments.get("Input Dims", ()))
            found[arguments["External id"]] = Operator(event["name"], shapes)
    return found
