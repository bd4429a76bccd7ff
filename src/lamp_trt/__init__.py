# SPDX-License-Identifier: Apache-2.0
"""Deployment engine for LAMP few-shot video generation: one engine, many motions, no torch at run time.

import lamp_trt

pipe = lamp_trt.load("bundle")
video = pipe("a horse runs on the road", motion="horse_run", first_frame="horse.png")
video.save("horse.mp4")

Importing lamp_trt sets ORT_DISABLE_TELEMETRY=1 in the environment, for this process and its children, unless
the variable is set already: ONNX Runtime 1.29 and later report to Microsoft without it. ONNX Runtime reads it
when it is imported, so import lamp_trt first; otherwise a RuntimeWarning is issued.
"""

import os
import sys
import warnings
from os import PathLike
from typing import TYPE_CHECKING

from lamp_trt._version import __version__ as __version__

if TYPE_CHECKING:
    from lamp_trt.engine.backends.backend import Residence
    from lamp_trt.engine.backends.cpu import CpuPrecision
    from lamp_trt.runtime.pipeline import LampPipeline

__all__ = ["load"]

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def _disable_telemetry() -> None:
    """Disable ONNX Runtime's telemetry, unless the host program has set the variable."""
    if NO_TELEMETRY in os.environ:
        return
    os.environ[NO_TELEMETRY] = "1"
    if "onnxruntime" in sys.modules:
        warnings.warn(
            "onnxruntime was imported before lamp_trt: from version 1.29 on it reports to Microsoft from "
            "this process, which nothing can stop any more. Import lamp_trt first, or set "
            f"{NO_TELEMETRY}=1 in the environment.",
            RuntimeWarning,
            stacklevel=3,
        )


_disable_telemetry()


def load(
    bundle: str | PathLike[str],
    device: str = "auto",
    backend: str = "auto",
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: str | PathLike[str] | None = None,
    resident_motions: "Residence" = "mapped",
    expect_bundle: str | None = None,
    verify_files: bool = False,
    cpu_precision: "CpuPrecision | None" = None,
) -> "LampPipeline":
    """Load a bundle that `lamp-trt build` made. `close`, or a `with` block, frees the pipeline's memory.

    bundle       its folder; every file is checked against its digest (cached while a file is unchanged)
    device       "auto" or "cpu", or a GPU: "cuda", "cuda:1"
    backend      "auto" takes OpenVINO on the CPU, without it ONNX Runtime (AOTInductor for a bundle in bf16),
                 and on a GPU the first that has engines for this bundle: "tensorrt", "aotinductor", or
                 "onnxruntime", which needs no engines
    motion       the initial motion; None: the bundle's default one. Calls may switch.
    num_threads  CPU threads of each network; None: the backend's choice
    engine_dir   folder of compiled engines, for a read-only bundle; None: the bundle's own
    resident_motions  where TensorRT's inactive motions are kept: "mapped" in their files, or, after their
                 first use, as copies in page-locked host memory ("pinned") or on the "device",
                 0.5 GB each at full size
    expect_bundle  the required digest of the bundle (`lamp-trt inspect` shows it)
    verify_files read every byte of the bundle first, also of files that have not changed since they were read
    cpu_precision  arithmetic of OpenVINO on the CPU: "fp32", or "bf16" if the CPU supports it, whatever the
                 bundle's weights are; None is bf16 for a bundle in bf16 if the CPU supports it, else fp32
    BundleError for a missing, unfinished or damaged bundle, InputError for the other arguments,
    EngineError if a network cannot be loaded.
    """
    from lamp_trt.runtime.algorithm.config import file_path
    from lamp_trt.runtime.load import load_pipeline
    from lamp_trt.runtime.requests import Placement

    placement = Placement(
        device=device,
        backend=backend,
        num_threads=num_threads,
        engine_dir=None if engine_dir is None else file_path("engine_dir", engine_dir),
        resident_motions=resident_motions,
        cpu_precision=cpu_precision,
    )
    return load_pipeline(
        bundle, placement, motion=motion, expect_bundle=expect_bundle, verify_files=verify_files
    )
