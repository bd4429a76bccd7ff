# SPDX-License-Identifier: Apache-2.0
"""Figures of a server in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

WAITING_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300)
JOB_BUCKETS = (1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)


@dataclass
class Histogram:
    """Cumulative histogram of seconds."""

    buckets: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterable[str]:
        running = 0
        for bound, count in zip((*self.buckets, "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{le="{bound}"}} {running}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {running}"


class Metrics:
    """Counters and histograms that the front keeps; gauges are given when the text is made."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()
        """Ended jobs by "completed", "deleted" or the code of their failure."""
        self.refused: Counter[str] = Counter()
        """Requests that made no job, by the code of their reply."""
        self.switches = 0
        self.retries = 0
        self.waiting = Histogram(WAITING_BUCKETS)
        self.step = Histogram(STEP_BUCKETS)
        self.making = Histogram(JOB_BUCKETS)

    def text(self, queued: int, states: Mapping[str, int], restarts: Mapping[str, int]) -> str:
        """states: number of engines by state. restarts: by engine."""
        lines: list[str] = []

        def metric(name: str, kind: str, help_text: str, values: Iterable[str]) -> None:
            lines.extend((f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *values))

        metric("lamp_trt_queue_length", "gauge", "Jobs that wait.", [f"lamp_trt_queue_length {queued}"])
        for name, kind, text, label, counts in (
            ("lamp_trt_engines", "gauge", "Engines by state.", "state", states),
            ("lamp_trt_engine_restarts_total", "counter", "Restarts by engine.", "engine", restarts),
            ("lamp_trt_jobs_total", "counter", "Ended jobs by outcome.", "outcome", self.jobs),
            ("lamp_trt_refused_total", "counter", "Refused requests by code.", "code", self.refused),
        ):
            values = [f'{name}{{{label}="{_escaped(key)}"}} {counts[key]}' for key in sorted(counts)]
            metric(name, kind, text, values)
        for name, text, count in (
            ("lamp_trt_motion_switches_total", "Switches of an engine's motion.", self.switches),
            ("lamp_trt_retries_total", "Jobs started again after their engine died.", self.retries),
        ):
            metric(name, "counter", text, [f"{name} {count}"])
        for name, text, histogram in (
            ("lamp_trt_waiting_seconds", "From the creation of a job to its start.", self.waiting),
            ("lamp_trt_step_seconds", "Of a denoising step.", self.step),
            ("lamp_trt_video_seconds", "From the start of a completed job to its end.", self.making),
        ):
            metric(name, "histogram", text, histogram.lines(name))
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
