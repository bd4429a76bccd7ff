# SPDX-License-Identifier: Apache-2.0
"""The ways to compute a network or a video, and the process that does it on request.

    python -m lamp_trt.benchmarks.studies.cpu_peers.ways FOLDER SUBJECT WHAT WAY

Prints a line of JSON when it is loaded, and one for each line on stdin: times, and the peak of this process.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.benchmarks.bench.entries.networks import network_entries
from lamp_trt.benchmarks.bench.entries.peers import Peers
from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.benchmarks.studies.cpu_peers import TWO_VIDEOS, VIDEO
from lamp_trt.benchmarks.studies.record import SUBJECTS
from lamp_trt.engine.backends.registry import backends_on
from lamp_trt.engine.bundle.reader import Bundle

EAGER, COMPILED = "PyTorch eager", "torch.compile"
STEPS = 4
TURN_S = 0.2
"""Seconds of a turn: short networks run several times in one."""


def backend_ways() -> dict[str, dict[str, Any]]:
    """Title → options of `load` for each backend of the CPU in each of its arithmetics."""
    ways: dict[str, dict[str, Any]] = {}
    for backend in backends_on(None):
        ways[backend.title] = {"backend": backend.name}
        if "bf16" in backend.cpu_precisions:
            ways[f"{backend.title}, bf16"] = {"backend": backend.name, "cpu_precision": "bf16"}
    return ways


def network_ways() -> tuple[str, ...]:
    return (*backend_ways(), EAGER, COMPILED)


def open_subject(folder: Path, subject: str, way: str) -> Subject:
    options = backend_ways().get(way, {})
    checkpoints = SUBJECTS[subject](folder / f"{subject}-checkpoints")
    bundle = Bundle.open(folder / f"{subject}-bundle")
    return Subject(bundle, BenchOptions(checkpoints=checkpoints, full=True, **options))


@contextmanager
def loaded(folder: Path, subject: str, what: str, way: str) -> Iterator[Callable[[], Any]]:
    """Load a network, or pipelines that make videos; a function that runs it once."""
    opened = open_subject(folder, subject, way)
    context: AbstractContextManager[Callable[[], Any]]
    if what in (VIDEO, TWO_VIDEOS):
        context = _videos(opened, backend_ways()[way], 1 + (what == TWO_VIDEOS))
    elif way in (EAGER, COMPILED):
        context = Peers(opened).entry(what, way, lean=False, compiled=way == COMPILED).setup()
    else:
        (entry,) = (each for each in network_entries(opened, lambda _: None) if each.name == what)
        context = entry.setup()
    with context as run:
        yield run


@contextmanager
def _videos(subject: Subject, options: dict[str, Any], count: int) -> Iterator[Callable[[], None]]:
    """`count` pipelines, each of which makes a video in a thread of its own."""
    import lamp_trt

    height, width = (subject.bundle.manifest.sizes[name] for name in ("height", "width"))
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with ExitStack() as stack:
        pipes = [
            stack.enter_context(lamp_trt.load(subject.bundle.path, device="cpu", **options))
            for _ in range(count)
        ]

        pool = stack.enter_context(ThreadPoolExecutor(count))
        settings: dict[str, Any] = {"first_frame": picture, "num_inference_steps": STEPS}

        def run() -> None:
            making = [pool.submit(pipe, "a horse", **settings) for pipe in pipes]
            for video in making:
                video.result()

        yield run


def work(folder: Path, subject: str, what: str, way: str) -> None:
    start = time.perf_counter()
    with loaded(folder, subject, what, way) as run:
        print(json.dumps({"load_s": time.perf_counter() - start}), flush=True)
        for number, _ in enumerate(sys.stdin):
            calls, wall, cpu = 0, time.perf_counter(), time.process_time()
            while calls == 0 or (number and time.perf_counter() - wall < TURN_S):
                output, calls = run(), calls + 1
            times = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            if number == 0 and output is not None:
                np.savez(outputs_path(folder, subject, what, way), **output)
            answer = {name: seconds / calls for name, seconds in times.items()}
            print(json.dumps({**answer, "peak_bytes": process_memory()[1]}), flush=True)


def outputs_path(folder: Path, subject: str, what: str, way: str) -> Path:
    return folder / "outputs" / f"{subject} {what} {way}.npz"


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:])
