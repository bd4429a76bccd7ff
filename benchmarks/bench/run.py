# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt bench`: one run of all requested measurements."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.compare import compare
from lamp_trt.benchmarks.bench.entries.ceilings import ceiling_entries
from lamp_trt.benchmarks.bench.entries.memory import network_memory
from lamp_trt.benchmarks.bench.entries.networks import network_entries
from lamp_trt.benchmarks.bench.entries.peers import Peers
from lamp_trt.benchmarks.bench.entries.start import start_entries
from lamp_trt.benchmarks.bench.entries.sweeps import run_sweep
from lamp_trt.benchmarks.bench.entries.videos import between_entries, video_entries
from lamp_trt.benchmarks.bench.harness import Clock, Entry, HostClock, run_entries
from lamp_trt.benchmarks.bench.machine_facts import machine_facts, machine_state
from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.result import BenchResult, read_result
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends.backend import HostOptions
from lamp_trt.engine.backends.registry import backends_on
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.memory import memory_bytes

log = logging.getLogger("lamp_trt")

HELD_SHARE = 0.5
"""Share of the available memory that entries set up together may hold."""

MEASURING_SHARE = 0.75
"""Share of the budget for sampling; the rest is for memory and operators, which are measured once."""


def run_bench(path: Path, options: BenchOptions, clock: Clock | None = None) -> BenchResult:
    """Measure the bundle at `path`. BundleError and InputError are raised before anything is measured;
    later failures are listed in `not_measured`."""
    start = time.monotonic()
    clock = clock or HostClock()
    earlier = [read_result(file) for file in options.compare]
    bundle = Bundle.open(path, expect_digest=options.expect_bundle)
    subject = Subject(bundle, options)
    log.info("measuring on %s", subject.pipeline_backend)
    entries = chosen(all_entries(subject), options.filter)
    result = BenchResult(
        machine=machine_facts(subject.ordinal),
        subject=subject.summary(),
        settings=_settings(options),
        state_before=machine_state(subject.ordinal),
    )
    begin = clock.now()
    held = int(HELD_SHARE * memory_bytes()[1])
    harvest = run_entries(entries, MEASURING_SHARE * options.budget_s, clock, memory_limit=held)
    result.measurements, result.not_measured = harvest.measurements, harvest.not_measured
    _look_inside(result, subject, begin + options.budget_s + harvest.extra_s, clock)
    result.not_measured += _left_out(subject)
    if options.sweep:
        result.growth, missing = run_sweep(subject)
        result.not_measured += missing
    result.state_after = machine_state(subject.ordinal)
    if options.compares_with_pytorch:
        _compare_with_pytorch(result, path, options)
    bundle.check_unchanged()
    if earlier:
        result.changes = compare(earlier[-1].measurements, result.measurements)
        result.history = [_medians(old) for old in earlier]
    result.seconds = time.monotonic() - start
    return result


def all_entries(subject: Subject) -> list[Entry]:
    """Return every entry that the bundle and the options allow, the fastest to set up first."""
    peers = Peers(subject)
    return [
        *ceiling_entries(subject.ordinal),
        *network_entries(subject, peers.reference),
        *between_entries(subject),
        *peers.entries(),
        *video_entries(subject),
        *start_entries(subject),
    ]


def chosen(entries: Sequence[Entry], word: str) -> list[Entry]:
    """Return the entries whose name or backend contains `word`, and the ceilings. InputError, listing the
    names, if there is none."""
    matching = [e for e in entries if word.lower() in f"{e.name} {e.backend}".lower()]
    if not any(e.group != "ceilings" for e in matching) and word:
        known = sorted({e.name for e in entries})
        raise InputError(f"--filter {word!r} matches nothing; there are: {', '.join(known)}.")
    return [e for e in entries if e in matching or e.group == "ceilings"]


def _look_inside(result: BenchResult, subject: Subject, deadline: float, clock: Clock) -> None:
    """Measure memory, in a process of its own, and operators of every measured network, until the
    deadline."""
    for name in dict.fromkeys(m.name for m in result.measurements if m.group == "networks"):
        if clock.now() >= deadline:
            result.not_measured.append(f"memory and operators of {name}: the budget ended before them")
            continue
        log.info("memory and operators of %s", name)
        result.memory[name], problem = network_memory(subject, name)
        result.not_measured += [problem] * bool(problem)
        if subject.ordinal is None:
            result.operators |= operators(result, subject, name)


def operators(result: BenchResult, subject: Subject, network: str) -> dict[str, dict[str, float]]:
    """Return seconds by operator under the network's name, from the first measured backend with a
    profiler; empty without one."""
    for backend in backends_on(None):
        if backend.operator_seconds and result.row(network, backend.name):
            asked = subject.options
            options = HostOptions(
                subject.motion_of(network), asked.num_threads, asked.engine_dir, asked.cpu_precision
            )
            arrays = subject.inputs(network)
            return {network: backend.operator_seconds(subject.bundle, network, arrays, options)}
    return {}


def _compare_with_pytorch(result: BenchResult, path: Path, options: BenchOptions) -> None:
    """Add the report of `lamp-trt verify`, and contact sheets of its clips."""
    from lamp_trt.benchmarks.bench.contact_sheet import sheet_png
    from lamp_trt.benchmarks.verify.options import VerifyOptions
    from lamp_trt.benchmarks.verify.run import verify_bundle

    log.info("comparing with PyTorch")
    report = verify_bundle(
        path,
        VerifyOptions(
            options.checkpoints,
            prompt=options.prompt,
            seed=options.seed,
            num_inference_steps=options.parity_steps,
            num_threads=options.num_threads,
            device=options.device,
            backend=options.backend,
            engine_dir=options.engine_dir,
            cpu_precision=options.cpu_precision,
        ),
    )
    result.parity = report.to_json()
    result.sheets = {name: sheet_png(*clip) for name, clip in report.clips.items()}


def _left_out(subject: Subject) -> list[str]:
    options = subject.options
    missing = []
    if options.backend == "auto":
        for backend in backends_on(subject.ordinal):
            name = backend.name
            if name in subject.backends_without_engines:
                missing.append(f"{name}: it has no engines for this bundle; lamp-trt build --backend {name}")
    if not options.full:
        missing.append("whole videos, PyTorch baselines, builds, several videos at once: add --full")
    if not options.compares_with_pytorch:
        missing.append("PyTorch baselines and parity: give the checkpoints (--sd, --motion, --sdxl)")
    if not options.sweep:
        missing.append("growth with frames, size and precision: add --sweep")
    if not subject.makes_videos:
        missing.append("stages and videos: the bundle lacks networks for them")
    return missing


def _settings(options: BenchOptions) -> dict[str, Any]:
    """Return the options as JSON values, without paths."""
    names = ("budget_s", "filter", "full", "sweep", "device", "backend", "num_threads", "cpu_precision")
    values = {name: getattr(options, name) for name in (*names, "num_inference_steps", "prompt", "seed")}
    return {**values, "motions_compared": list(options.checkpoints.motions)}


def _medians(old: BenchResult) -> dict[str, Any]:
    """Return an earlier result as a point of the history."""
    return {
        "commit": old.machine.get("commit", ""),
        "date": old.machine.get("date", ""),
        "medians": [[m.name, m.backend, m.median_s] for m in old.measurements],
    }
