# SPDX-License-Identifier: Apache-2.0
"""The parts of the study: functions of its folder that return figures as JSON values."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.benchmarks.proof.pipeline import PROMPT, whole_options, write_checkpoints
from lamp_trt.benchmarks.studies.products import product_flops
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.backends.registry import choose_backend, host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import LAMP, SDXL, component_of

Figures = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]

RUNS: Mapping[str, int] = {LAMP.unet: 2, SDXL.unet: 2, "vae_decoder": 2, "sdxl_vae_decoder": 2}
"""Measured networks, and how often each runs; the fastest run counts."""

IN_FP32 = (LAMP.unet, "vae_decoder")
"""Networks that run once in fp32 too, from which the distances of bf16 are taken. SDXL's UNet would take more
than 24 GB."""


def make_bundle(folder: Path) -> Figures:
    """Checkpoints with seeded, tamed weights in fp16, and their bundle in bf16."""
    from lamp_trt.export.build import build_bundle

    start = time.perf_counter()
    write_checkpoints(folder)
    checkpoints_s = time.perf_counter() - start
    report = build_bundle(bundle_path(folder), replace(whole_options(folder), precision="bf16"))
    sizes = [entry.size for entry in Bundle.open(bundle_path(folder)).manifest.files.values()]
    return {"checkpoints_s": checkpoints_s, "build_s": report.seconds, "bundle_bytes": sum(sizes)}


def bundle_path(folder: Path) -> Path:
    return folder / "bundle-bf16"


def limits(folder: Path) -> Figures:
    """Measured rates of matrix products, FLOP/s."""
    return {precision: product_flops(precision) for precision in ("fp32", "bf16")}


def network(folder: Path, name: str, precision: CpuPrecision, runs: int) -> Figures:
    """Time and memory of a network on the backend that `auto` takes. Its outputs are kept in the folder."""
    subject = Subject(Bundle.open(bundle_path(folder)), BenchOptions(cpu_precision=precision))
    backend = choose_backend(None, "auto", subject.bundle, None, precision)
    arrays, flops = subject.inputs(name), subject.work[name].flops
    start = time.perf_counter()
    with host_engine(
        backend, subject.bundle, name, motion=subject.motion_of(name), cpu_precision=precision
    ) as engine:
        load_s = time.perf_counter() - start
        times: list[dict[str, float]] = []
        outputs: Arrays = {}
        for _ in range(runs):
            seconds, outputs = _timed(partial(engine.run, arrays))
            times.append(seconds)
    _keep(folder, f"{name}-{precision}", outputs)
    return {
        "backend": backend,
        "load_s": load_s,
        "first_s": times[0]["wall_s"],
        **min(times, key=lambda seconds: seconds["wall_s"]),
        "flops": flops,
        "peak_bytes": process_memory()[1],
    }


def pytorch(folder: Path, name: str) -> Figures:
    """Time and memory of PyTorch's own module in bf16, official formulation.

    rel_l2: from ours; to_fp32: ours and PyTorch's from our network in fp32, where that has run.
    """
    import torch

    from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS, module_inputs

    subject, entry = Subject(Bundle.open(bundle_path(folder)), BenchOptions()), REFERENCE_NETWORKS[name]
    arrays = subject.original_inputs(name)
    origin, options = component_of(name).origin, whole_options(folder)
    place = options.motions[subject.motion_of(name)] if name == LAMP.unet else getattr(options, origin.field)
    start = time.perf_counter()
    module = entry.load(place, torch.bfloat16)
    load_s = time.perf_counter() - start

    def run() -> Arrays:
        with torch.inference_mode():
            outputs = entry.run(module, module_inputs(module, arrays))
        tensors = zip(subject.bundle.network(name).outputs, outputs, strict=True)
        return {tensor.name: value.float().numpy() for tensor, value in tensors}

    seconds, outputs = _timed(run)
    peak_bytes = process_memory()[1]
    ours = _kept(folder, f"{name}-bf16")
    figures = {"load_s": load_s, **seconds, "peak_bytes": peak_bytes, "rel_l2": _off(ours, outputs)}
    if not _outputs_path(folder, f"{name}-fp32").is_file():
        return figures
    exact = _kept(folder, f"{name}-fp32")
    return {**figures, "to_fp32": {"ours": _off(ours, exact), "pytorch": _off(outputs, exact)}}


def video(folder: Path, *, from_text: bool) -> Figures:
    """A video of one step by the public interface; from text SDXL makes the first frame, in one step too."""
    import lamp_trt

    picture = np.random.default_rng(0).integers(0, 256, (320, 512, 3), dtype=np.uint8)
    start = time.perf_counter()
    with lamp_trt.load(bundle_path(folder), device="cpu") as pipe:
        load_s = time.perf_counter() - start
        made = pipe(
            PROMPT,
            first_frame=None if from_text else picture,
            num_inference_steps=1,
            first_frame_num_inference_steps=1,
        )
    assert np.isfinite(made.latents).all()
    return {"load_s": load_s, "timings": dict(made.timings), "peak_bytes": process_memory()[1]}


def _timed(run: Callable[[], Arrays]) -> tuple[dict[str, float], Arrays]:
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}, outputs


def _outputs_path(folder: Path, name: str) -> Path:
    return folder / "figures" / f"{name}.npz"


def _keep(folder: Path, name: str, outputs: Arrays) -> None:
    path = _outputs_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: value.astype(np.float32) for key, value in outputs.items()})  # type: ignore[arg-type]


def _kept(folder: Path, name: str) -> Arrays:
    with np.load(_outputs_path(folder, name)) as kept:
        return dict(kept)


def _off(values: Arrays, reference: Arrays) -> float:
    return max(distance(values[key], reference[key]).rel_l2 for key in reference)


PARTS: Mapping[str, Callable[[Path], Figures]] = {
    "bundle": make_bundle,
    "limits": limits,
    **{name: partial(network, name=name, precision="bf16", runs=runs) for name, runs in RUNS.items()},
    "video-from-image": partial(video, from_text=False),
    "video-from-text": partial(video, from_text=True),
    **{f"{name}-fp32": partial(network, name=name, precision="fp32", runs=1) for name in IN_FP32},
    **{f"{name}-pytorch": partial(pytorch, name=name) for name in RUNS},
}
"""Parts in the order in which they are measured: PyTorch's after ours, which they compare with."""
