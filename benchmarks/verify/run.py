# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify`: comparison of a bundle with PyTorch on the checkpoints that it was made from.

Checks go from parts to the whole, so that the first failure names the culprit: constants, tokenizers and
weights exactly; then, on equal inputs, each network, each step, and the clip.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.benchmarks.verify.checks.bundle import exact_checks
from lamp_trt.benchmarks.verify.checks.first_frame import verify_first_frame
from lamp_trt.benchmarks.verify.checks.networks import NetworkProof, why_not_judged
from lamp_trt.benchmarks.verify.checks.videos import verify_videos
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.report import Report
from lamp_trt.engine.backends.registry import find_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, LAMP, NETWORKS, VIDEO_NETWORKS, component_of
from lamp_trt.engine.torch_threads import torch_threads
from lamp_trt.export.checkpoints.files import find_component
from lamp_trt.runtime.load import Place

_LIBRARIES = ("lamp_trt", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy")


def verify_bundle(path: Path, options: VerifyOptions) -> Report:
    """Compare the bundle at `path` with its checkpoints. Parts without a checkpoint are listed as not
    verified.

    On other backends than ONNX Runtime's on the CPU, networks whose checkpoint is missing are compared with
    their own graphs in fp32. InputError if nothing can be compared; BundleError, CheckpointError and
    EngineError as usual. Exceeded limits do not raise: they are in the report's checks.
    """
    bundle = Bundle.open(path)
    checkpoints = options.checkpoints
    for motion in checkpoints.motions:
        bundle.motion(motion)
    place = Place.of(bundle, options.loading)
    held = [name for name in NETWORKS if name in bundle.manifest.networks]
    networks = [name for name in held if checkpoints.given(component_of(name).origin)]
    judged = [name for name in held if why_not_judged(bundle, name, place, options) is None]
    if not judged:
        needed = {component_of(name).origin.option for name in held}
        raise InputError(f"nothing to compare the bundle with: give {' or '.join(sorted(needed))}.")
    for name in networks:  # a missing file is an error before anything runs
        component = component_of(name)
        for motion in checkpoints.motions_of(component.origin):
            find_component(checkpoints.folder(component.origin, motion), component.folder)
    report = Report(_subject(bundle, place), _settings(options))
    report.not_verified = _not_verified(bundle, networks, place, options)
    with torch_threads(options.num_threads):
        with _timed(report, "constants, tokenizer, weights"):
            report.checks += exact_checks(bundle, networks, options)
        with _timed(report, "networks"):
            for name in judged:
                report.checks += NetworkProof(bundle, name, place, options).checks(report.checks)
        _run_loops(report, bundle, networks, options)
    _, report.peak_memory_bytes = process_memory()
    return report


def _run_loops(report: Report, bundle: Bundle, networks: list[str], options: VerifyOptions) -> None:
    if options.num_inference_steps and all(name in networks for name in VIDEO_NETWORKS):
        with _timed(report, "video"):
            verify_videos(report, bundle, options)
    if options.num_inference_steps and all(name in networks for name in FIRST_FRAME_NETWORKS):
        with _timed(report, "first frame"):
            verify_first_frame(report, bundle, options)


def _not_verified(bundle: Bundle, networks: list[str], place: Place, options: VerifyOptions) -> list[str]:
    """Return the parts that are not verified, each with its reason. networks: those whose checkpoint is
    given."""
    manifest, checkpoints = bundle.manifest, options.checkpoints
    reasons = {
        name: why_not_judged(bundle, name, place, options) for name in manifest.networks if name in NETWORKS
    }
    missing = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if LAMP.unet in networks:
        missing += [
            f"motion {name} (give --motion {name}=DIR)"
            for name in manifest.motions
            if name not in checkpoints.motions
        ]
    unseen = [name for name, reason in reasons.items() if not reason and name not in networks]
    if unseen:
        missing.append(f"the graphs of {', '.join(unseen)} against PyTorch (give their checkpoints)")
    if not options.num_inference_steps:
        missing.append("the loop and the clip (--steps 0)")
    elif not set(VIDEO_NETWORKS) <= set(networks):
        missing.append("the loop and the clip (they need " + ", ".join(VIDEO_NETWORKS) + ")")
    return missing


def _subject(bundle: Bundle, place: Place) -> dict[str, Any]:
    """Return what is verified, and the versions of the programs, without paths and names of hosts and
    users."""
    manifest = bundle.manifest
    library = find_backend(place.backend).library().__name__
    return {
        "bundle": bundle.digest,
        "sizes": manifest.sizes,
        "device": "cpu" if place.ordinal is None else f"cuda:{place.ordinal}",
        "backend": place.backend,
        "precisions": sorted({network.precision for network in manifest.networks.values()}),
        "versions": {name: import_module(name).__version__ for name in (*_LIBRARIES, library)},
    }


def _settings(options: VerifyOptions) -> dict[str, Any]:
    return {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "first_frame": "synthetic" if options.first_frame is None else options.first_frame.name,
        "seed": options.seed,
        "num_inference_steps": options.num_inference_steps,
        "motions": list(options.checkpoints.motions),
    }


@contextmanager
def _timed(report: Report, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    report.seconds[stage] = time.monotonic() - start
