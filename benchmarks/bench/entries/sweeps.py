# SPDX-License-Identifier: Apache-2.0
"""Growth of one step of the LAMP UNet with frames, size and precision of the video.

Every point is a bundle of its own, built from the first motion into a temporary folder and run in a fresh
process on the CPU. The batch is 2 throughout, by guidance; `lamp-trt bench --full` measures several videos at
once.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.probe import probe
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends.registry import REFERENCE
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.errors import LampError
from lamp_trt.engine.families import LAMP

log = logging.getLogger("lamp_trt")

Axis = Literal["frames", "size", "precision"]

FRAMES = (8, 16, 24)
SCALES = (0.5, 0.75, 1.0)
"""Factors on the bundle's own height and width, rounded to sizes that the UNet takes."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

SIZE_STEP = 64
"""Pixels: 8 by the VAE, and three halvings in the UNet."""


@dataclass(frozen=True)
class Point:
    """One size of the video. axis: the property that differs from the bundle's."""

    axis: Axis
    height: int
    width: int
    num_frames: int
    precision: Precision

    @property
    def label(self) -> str:
        return {
            "frames": f"{self.num_frames} frames",
            "size": f"{self.width}x{self.height}",
            "precision": self.precision,
        }[self.axis]


def points(height: int, width: int, num_frames: int, precision: Precision) -> Iterator[Point]:
    """Yield the points of a bundle with these sizes: one axis varies at a time, through the bundle's own
    point."""
    for frames in FRAMES:
        yield Point("frames", height, width, frames, precision)
    for scale in SCALES:
        yield Point("size", _rounded(height * scale), _rounded(width * scale), num_frames, precision)
    for other in PRECISIONS:
        yield Point("precision", height, width, num_frames, other)


def _rounded(pixels: float) -> int:
    return max(SIZE_STEP, round(pixels / SIZE_STEP) * SIZE_STEP)


def run_sweep(subject: Subject) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the points for BenchResult.growth, and the reasons for missing ones."""
    sizes, options = subject.bundle.manifest.sizes, subject.options
    precision = subject.bundle.network(LAMP.unet).precision
    if precision not in REFERENCE.precisions:
        return [], [f"growth: it is measured on {REFERENCE.title}, which does not run {precision}"]
    growth, missing = [], []
    for point in points(sizes["height"], sizes["width"], sizes["num_frames"], precision):
        log.info("sweep: %s", point.label)
        try:
            growth.append({"axis": point.axis, "label": point.label, **measure(point, options)})
        except LampError as error:
            missing.append(f"sweep of {point.axis}, {point.label}: {error}")
    return growth, missing


def measure(point: Point, options: BenchOptions) -> dict[str, Any]:
    """Measure seconds and memory of one step's UNet at a point, and count its operations. LampError if it
    cannot be built or run."""
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    motion, folder = next(iter(options.checkpoints.motions.items()))
    with tempfile.TemporaryDirectory(prefix="lamp-trt-sweep-") as temporary:
        out = Path(temporary) / "bundle"
        build_bundle(
            out,
            BuildOptions(
                motions={motion: folder},
                precision=point.precision,
                height=point.height,
                width=point.width,
                num_frames=point.num_frames,
            ),
        )
        run = probe("network", str(out), LAMP.unet, REFERENCE.name, "", str(options.num_threads or ""), "")
        work = Subject(Bundle.open(out), options).work[LAMP.unet]
    return {
        "height": point.height,
        "width": point.width,
        "num_frames": point.num_frames,
        "precision": point.precision,
        "seconds": run["run_s"],
        "peak_bytes": int(run["peak_bytes"] - run["bare_bytes"]),
        "flops": work.flops,
    }
