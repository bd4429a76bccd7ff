# SPDX-License-Identifier: Apache-2.0
"""Measurement of entries: set-up, cold call, samples, comparison with a reference.

Entries that are set up together take turns, so that a slow-down of the machine affects all of them and shows
in their spread. Sampling ends when the medians settle or the budget is spent.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.bench.measurement import ClockName, Group, Measurement, median_error
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.errors import LampError

log = logging.getLogger("lamp_trt")

SETTLED_SHARE = 0.01
"""A median is settled when its standard error is at most this share of it."""
MIN_SAMPLES, MAX_SAMPLES, FEW_SAMPLES = 10, 200, 5
TURN_S = 0.1
"""Seconds of a turn. Short entries make several calls in one, at most MAX_TURN."""
MAX_TURN = 10
PAUSE_S = 0.01
"""Seconds of pause before each turn: other engines' threads stop spinning in the meantime."""


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and the CPU seconds of the process in it."""

    seconds: float
    process_s: float | None


class Clock(Protocol):
    """Clock that measures calls."""

    def now(self) -> float:
        """Return the time in seconds, for budgets."""
        ...

    def pause(self, seconds: float) -> None: ...

    def sample(self, function: Callable[[], Any]) -> tuple[Sample, Any]:
        """Call once; return the times of the call and its result."""
        ...


class HostClock:
    """Wall time and process time of this machine."""

    def now(self) -> float:
        return time.perf_counter()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def sample(self, function: Callable[[], Any]) -> tuple[Sample, Any]:
        process, start = time.process_time(), time.perf_counter()
        output = function()
        end = time.perf_counter()
        return Sample(end - start, time.process_time() - process), output


Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """Work to measure.

    setup        context manager that yields the function to call and releases its resources
    clock        "wall"; "stream" if the function returns seconds between CUDA events; "own" if it returns
                 seconds that it measured itself
    reference    expected outputs of the first call, by name; None: not compared
    reference_name   source of the reference
    parts        returns seconds by stage from the result of a call
    held_bytes   memory in use between setup and release, which limits the entries that are set up together
    unbudgeted   set-up and first call extend the budget by their time: a compiler's run
    few          FEW_SAMPLES instead of MIN_SAMPLES, for long calls
    """

    name: str
    group: Group
    backend: str
    setup: Callable[[], AbstractContextManager[Callable[[], Any]]]
    clock: ClockName = "wall"
    flops: int = 0
    bytes_moved: int = 0
    held_bytes: int = 0
    reference: Callable[[], Outputs] | None = None
    reference_name: str = ""
    parts: Callable[[Any], Mapping[str, float]] | None = None
    unbudgeted: bool = False
    few: bool = False


@dataclass
class _Running:
    """An entry that is set up, with its samples."""

    entry: Entry
    function: Callable[[], Any]
    setup_s: float
    cold: Sample
    rel_l2: float | None
    samples: list[Sample] = field(default_factory=list)
    parts: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(sample.seconds for sample in self.samples)

    @property
    def typical_s(self) -> float:
        return float(np.median(self.seconds)) if self.samples else self.cold.seconds

    @property
    def settled(self) -> bool:
        enough = len(self.samples) >= (FEW_SAMPLES if self.entry.few else MIN_SAMPLES)
        return enough and median_error(self.seconds) <= SETTLED_SHARE * self.typical_s

    @property
    def done(self) -> bool:
        most = FEW_SAMPLES if self.entry.few else MAX_SAMPLES
        return self.settled or len(self.samples) >= most


@dataclass
class Harvest:
    """Results in the order of the entries.

    not_measured  entries that were not measured, each with its reason
    extra_s       seconds by which the budget was extended
    """

    measurements: list[Measurement] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    extra_s: float = 0.0


def run_entries(
    entries: Sequence[Entry], budget_s: float, clock: Clock, *, memory_limit: int = 2**62
) -> Harvest:
    """Measure `entries` in about `budget_s` seconds: none is started after that, a started one is finished.

    memory_limit: bytes that entries set up together may hold. More entries are measured in batches, each with
    its share of the time. An entry that raises LampError or ModuleNotFoundError is listed as not measured;
    any other error propagates.
    """
    harvest = Harvest()
    start = clock.now()
    finished = 0
    for batch in _batches(entries, memory_limit):
        finished += len(batch)
        _run_batch(batch, start + budget_s * finished / len(entries), start + budget_s, clock, harvest)
    return harvest


def _batches(entries: Sequence[Entry], memory_limit: int) -> list[list[Entry]]:
    batches: list[list[Entry]] = []
    held = 0
    for entry in entries:
        if not batches or held + entry.held_bytes > memory_limit:
            batches.append([])
            held = 0
        batches[-1].append(entry)
        held += entry.held_bytes
    return batches


def _run_batch(batch: Sequence[Entry], deadline: float, last: float, clock: Clock, harvest: Harvest) -> None:
    with ExitStack() as stack:
        running = []
        for entry in batch:
            what = f"{entry.name} ({entry.backend})"
            begin = clock.now()
            if begin >= last + harvest.extra_s:
                harvest.not_measured.append(f"{what}: the budget ended before it")
                continue
            log.info("setting up %s", what)
            try:
                running.append(_set_up(entry, stack, clock))
            except (LampError, ModuleNotFoundError) as error:
                harvest.not_measured.append(f"{what}: {error}")
            if entry.unbudgeted:
                harvest.extra_s += clock.now() - begin
        _take_turns(running, deadline + harvest.extra_s, clock)
        harvest.measurements += [_measurement(row) for row in running]


def _set_up(entry: Entry, stack: ExitStack, clock: Clock) -> _Running:
    """Set up an entry, call it twice (the cold call and the first sample) and compare the outputs."""
    begin = clock.now()
    with ExitStack() as guard:
        function = guard.enter_context(entry.setup())
        setup_s = clock.now() - begin
        cold, output = _sample(entry, function, clock)
        rel_l2 = None
        if entry.reference is not None:
            expected = entry.reference()
            rel_l2 = max(distance(np.asarray(output[name]), array).rel_l2 for name, array in expected.items())
        row = _Running(entry, function, setup_s, cold, rel_l2)
        _add_sample(row, clock)
        stack.push(guard.pop_all())
    return row


def _take_turns(rows: Sequence[_Running], deadline: float, clock: Clock) -> None:
    """Sample in rounds of turns until all rows are done or the next turn would end after the deadline."""
    going = list(rows)
    while going:
        for row in list(going):
            calls = int(np.clip(TURN_S / max(row.typical_s, 1e-9), 1, MAX_TURN))
            if row.done or clock.now() + calls * row.typical_s > deadline:
                going.remove(row)
                continue
            clock.pause(PAUSE_S)
            for _ in range(calls):
                _add_sample(row, clock)


def _add_sample(row: _Running, clock: Clock) -> None:
    sample, output = _sample(row.entry, row.function, clock)
    row.samples.append(sample)
    if row.entry.parts:
        row.parts.append(row.entry.parts(output))


def _sample(entry: Entry, function: Callable[[], Any], clock: Clock) -> tuple[Sample, Any]:
    sample, output = clock.sample(function)
    if entry.clock == "wall":
        return sample, output
    return Sample(float(output), None), output


def _measurement(row: _Running) -> Measurement:
    entry = row.entry
    process = [sample.process_s for sample in row.samples if sample.process_s is not None]
    return Measurement(
        name=entry.name,
        group=entry.group,
        backend=entry.backend,
        samples_s=tuple(round(seconds, 9) for seconds in row.seconds),
        cold_s=row.cold.seconds,
        setup_s=row.setup_s,
        settled=row.settled,
        clock=entry.clock,
        process_s=float(np.median(process)) if process else None,
        flops=entry.flops,
        bytes_moved=entry.bytes_moved,
        parts={
            stage: float(np.median([parts[stage] for parts in row.parts]))
            for stage in (row.parts[0] if row.parts else ())
        },
        rel_l2=row.rel_l2,
        reference=entry.reference_name if row.rel_l2 is not None else "",
    )
