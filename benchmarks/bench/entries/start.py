# SPDX-License-Identifier: Apache-2.0
"""Entries of the work before the first video: import, load, build."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.harness import Entry
from lamp_trt.benchmarks.bench.probe import probe
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.families import LAMP


def start_entries(subject: Subject) -> list[Entry]:
    """Return entries of import and load, in fresh processes; with all checkpoints and --full also of the
    build."""
    options = subject.options
    arguments = (
        str(subject.bundle.path),
        options.device,
        options.backend,
        str(options.engine_dir or ""),
        str(options.num_threads or ""),
        options.cpu_precision or "",
    )
    entries = [_in_a_process("import lamp_trt", "Python", lambda: probe("import")["import_s"])]
    if subject.makes_videos:
        load = partial(_load_seconds, arguments)
        entries.append(_in_a_process("load the video's networks", subject.pipeline_backend, load))
    if options.full and _can_build(subject):
        for name, idle in (("build, from nothing", False), ("build, nothing to do", True)):
            setup = partial(_building, subject, idle)
            fields: dict[str, Any] = {"clock": "own", "few": True, "unbudgeted": True}
            entries.append(Entry(name, "start", "PyTorch exporter", setup, **fields))
    return entries


def _in_a_process(name: str, backend: str, seconds: Callable[[], float]) -> Entry:
    @contextmanager
    def setup() -> Iterator[Callable[[], float]]:
        yield seconds

    return Entry(name=name, group="start", backend=backend, setup=setup, clock="own", few=True)


def _load_seconds(arguments: tuple[str, ...]) -> float:
    return probe("load", *arguments)["load_s"]


def _can_build(subject: Subject) -> bool:
    """Return whether the checkpoints of everything in the bundle are given."""
    given, manifest = subject.options.checkpoints, subject.bundle.manifest
    needs_sdxl = manifest.first_frame is not None
    return bool(given.sd and given.motions and (given.sdxl or not needs_sdxl))


@contextmanager
def _building(subject: Subject, idle: bool) -> Iterator[Callable[[], float]]:
    """Yield a function that builds a bundle like the subject in a temporary folder: a new one at each
    call, or, `idle`, the same again."""
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    checkpoints, manifest = subject.options.checkpoints, subject.bundle.manifest
    sizes = manifest.sizes
    sdxl = checkpoints.sdxl if manifest.first_frame is not None else None
    options = BuildOptions(
        sd=checkpoints.sd,
        motions=checkpoints.motions,
        sdxl=sdxl,
        precision=manifest.networks[LAMP.unet].precision,
        height=sizes["height"],
        width=sizes["width"],
        num_frames=sizes["num_frames"],
        first_frame_height=sizes["first_frame_height"] if sdxl else None,
        first_frame_width=sizes["first_frame_width"] if sdxl else None,
    )

    def build(out: Path) -> float:
        start = time.perf_counter()
        build_bundle(out, options)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="lamp-trt-bench-") as folder:
        if idle:
            build(Path(folder) / "bundle")
            yield lambda: build(Path(folder) / "bundle")
            return

        def from_nothing() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as new:
                return build(Path(new) / "bundle")

        yield from_nothing
