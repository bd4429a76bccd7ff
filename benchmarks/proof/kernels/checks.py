# SPDX-License-Identifier: Apache-2.0
"""Checks of the kernels on a GPU: both loaders, the tests' cases, full-size loops, graphs, sanitizers, times.

python -m lamp_trt.benchmarks.proof.kernels.checks      # every kernel once, for compute-sanitizer
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.kernels import times
from lamp_trt.benchmarks.proof.kernels.arrays import DeviceLoop, DeviceVideo, launcher, raw
from lamp_trt.benchmarks.proof.names import file_name
from lamp_trt.runtime import kernels
from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import denoise_step, final_adain, mix_noise
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.kernels import device, nvrtc
from lamp_trt.runtime.kernels.arrays import device_array
from lamp_trt.runtime.kernels.frames import (
    count_decoded,
    decoder_input,
    first_frame,
    match_histograms,
    posterior_sample,
)
from lamp_trt.runtime.kernels.latent_loop import begin_loop, latent_step
from lamp_trt.runtime.kernels.launch import NO_STEP

ROOT = Path(__file__).resolve().parents[3]
TESTS = [ROOT / "tests" / "runtime" / "kernels" / f"test_{name}.py" for name in ("loop", "noise", "frames")]
STEPS, GUIDANCE = 50, 12.5

LOOP_SHARE = 1e-5
"""50 steps in fp32 against the twin, as a share of the largest value."""


def checks(out: Path, *, timings: bool = True) -> Iterator[Check]:
    """Yield the checks of the kernels. out: folder for the timings."""
    yield "NVRTC compiles the kernels, and they load", loads_from_nvrtc
    yield "nvcc compiles the fatbin, and it loads", loads_from_fatbin
    yield "the tests' cases hold on the GPU", tests_on_the_gpu
    for shape in [(2, 4, 16, 40, 64), (2, 4, 24, 40, 64), (2, 4, 3, 41, 63), (1, 4, 2, 96, 160)]:
        for preset in ("official", "paper"):
            for seed in (0, 2**40 + 1):
                claim = f"50 steps of {shape}, preset {preset}, seed {seed} are the twin's"
                yield claim, partial(loop_matches_the_twin, shape, preset, seed)
    yield "a captured step replayed 50 times gives the bits of 50 launches", graph_equals_launches
    yield "the host sees the steps while the loop runs", progress_is_seen_from_the_host
    for tool in ("memcheck", "racecheck"):
        yield f"compute-sanitizer {tool} finds nothing", partial(sanitizer_is_clean, tool)
    if timings:
        yield "timings", partial(write_timings, out)


def loads_from_nvrtc() -> str:
    from cuda.core import Device, ObjectCode

    arch = f"sm_{Device().arch}"
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cubin = nvrtc.cubin(arch, Path(folder))
        seconds = time.perf_counter() - start
    check_all(ObjectCode.from_cubin(cubin))
    return f"{arch}, {len(cubin)} bytes in {seconds:.1f} s"


def loads_from_fatbin() -> str:
    from cuda.core import ObjectCode

    if shutil.which("nvcc") is None:
        raise Unavailable("nvcc is not installed")
    with tempfile.TemporaryDirectory() as folder:
        fatbin = Path(folder, "k.fatbin")
        source = ROOT / "runtime" / "kernels" / kernels.TRANSLATION_UNIT
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (75, 80, 86, 89, 90, 100, 120)]
        start = time.perf_counter()
        command = ["nvcc", "-fatbin", "-std=c++17", "-O3", "--threads", "0", *codes, "-o", str(fatbin)]
        subprocess.run([*command, str(source)], check=True)
        seconds = time.perf_counter() - start
        check_all(ObjectCode.from_fatbin(fatbin.read_bytes(), name="lamp_kernels"))
    return f"seven architectures in {seconds:.1f} s"


def check_all(code: Any) -> None:
    """Check parameters and local memory of every kernel, as the driver reports them."""
    for name in kernels.SIGNATURES:
        kernel = code.get_kernel(name)
        device.check_parameters(name, [size for _, size in kernel.arguments_info])
        assert local_bytes(kernel.attributes) == 0, f"{name} has a stack"


def local_bytes(attributes: Any) -> int:
    """Local memory of a thread: a method until cuda.core 1.0, a property from then on."""
    size = attributes.local_size_bytes
    return int(size() if callable(size) else size)


def tests_on_the_gpu() -> str:
    if importlib.util.find_spec("pytest") is None:
        raise Unavailable("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    environment = {**os.environ, "LAMP_TRT_TEST_GPU": "1"}
    environment.pop("LAMP_TRT_GOLDEN", None)
    done = subprocess.run(
        [*command, *map(str, TESTS)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def loop_matches_the_twin(shape: tuple[int, ...], preset: Any, seed: int) -> str:
    torch.manual_seed(0)
    loop, launch, schedule = DeviceLoop(shape), launcher(), ddim_schedule(STEPS)
    loop.fill_tables(STEPS, guidance_scale=GUIDANCE, preset=preset)
    first = torch.randn(1, shape[1], 1, *shape[3:], device="cuda")
    base = Purpose.PAPER_BASE if preset == "paper" else None
    begin_loop(
        launch,
        loop.arrays,
        STEPS,
        seed=seed,
        purpose=Purpose.VIDEO,
        base_weight=NOISE_BASE_WEIGHT,
        base_purpose=base,
        first_frame=device_array(first),
    )
    drawn = latent_noise(seed, Purpose.VIDEO, (1, *shape[1:]))
    own_base = None if base is None else latent_noise(seed, base, (1, shape[1], 1, *shape[3:]))
    want = mix_noise(drawn, first.cpu().numpy(), own_base)
    start = float(np.abs(loop.latents[:1].cpu().numpy() - want).max())
    assert start < 2e-6, f"initial latents differ by {start:.1e}"
    guidance = GUIDANCE if shape[0] == 2 else 1.0
    for i in range(STEPS):
        loop.noise_pred.normal_()
        latent_step(launch, loop.arrays)
        pred = loop.noise_pred.float().cpu().numpy()
        want = denoise_step(want, pred, i, schedule, guidance_scale=guidance, preset=preset)
    want = final_adain(want, preset)
    error = float(np.abs(loop.latents[:1].cpu().numpy() - want).max() / np.abs(want).max())
    assert error < LOOP_SHARE, f"the final latents differ by {error:.1e} of the largest"
    assert loop.progress().item()[:2] == (STEPS, NO_STEP)
    return f"initial {start:.1e}, final {error:.1e} of the largest"


def stand_in(loop: DeviceLoop) -> None:
    """Write noise_pred from the sample and the time row, in place of the UNet."""
    torch.mul(torch.sin(3 * loop.sample + 1e-3 * loop.time_row[0]), 0.7, out=loop.noise_pred)


def run_loop(loop: DeviceLoop, graph: bool) -> torch.Tensor:
    """Return the final latents of seed 3, stepped by launches or by replays of one captured step."""
    begin_loop(launcher(), loop.arrays, STEPS, seed=3, purpose=Purpose.VIDEO, base_weight=NOISE_BASE_WEIGHT)
    if not graph:
        for _ in range(STEPS):
            stand_in(loop)
            latent_step(launcher(), loop.arrays)
    else:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, capture_error_mode="thread_local"):
            stand_in(loop)
            latent_step(launcher(), loop.arrays)
        for _ in range(STEPS):
            captured.replay()
    torch.cuda.synchronize()
    return loop.latents[0].clone()


def graph_equals_launches() -> str:
    loop = DeviceLoop((2, 4, 16, 40, 64), dtype=torch.float32)
    loop.fill_tables(STEPS, guidance_scale=GUIDANCE)
    launched, replayed, again = run_loop(loop, False), run_loop(loop, True), run_loop(loop, True)
    assert torch.isfinite(launched).all()
    assert torch.equal(launched, replayed)
    assert torch.equal(replayed, again)
    return f"{launched.numel()} values equal, twice"


def progress_is_seen_from_the_host() -> str:
    """Read the progress while the GPU waits between steps, without a synchronisation."""
    loop = DeviceLoop((2, 4, 16, 40, 64))
    loop.fill_tables(STEPS, guidance_scale=GUIDANCE)
    begin_loop(launcher(), loop.arrays, STEPS, seed=3, purpose=Purpose.VIDEO)
    torch.cuda.synchronize()
    for _ in range(STEPS):
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
        latent_step(launcher(), loop.arrays)
    seen = set()
    deadline = time.perf_counter() + 30
    while (done := int(loop.progress()["steps_done"])) < STEPS and time.perf_counter() < deadline:
        seen.add(done)
    assert done == STEPS
    assert len(seen) > STEPS // 2, f"only {sorted(seen)} seen"
    return f"{len(seen)} of {STEPS} counts seen"


def sanitizer_is_clean(tool: str) -> str:
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        raise Unavailable("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kernel_substring=lamp_"]
    command += ["--report-api-errors", "no"]  # cuda.core probes for functions that a driver may lack
    command += [sys.executable, "-m", "lamp_trt.benchmarks.proof.kernels.checks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        raise Unavailable("compute-sanitizer refuses this device")
    assert done.returncode == 0, output[-4000:]
    return output.strip().splitlines()[-1]


def every_kernel_once() -> None:
    """Run every kernel that a pipeline launches at small and odd sizes, for compute-sanitizer."""
    launch = launcher()
    for dtype in (torch.float16, torch.float32):
        for size in ((8, 8), (5, 7), (40, 64)):
            loop = DeviceLoop((2, 4, 3, *size), dtype, 3)
            loop.fill_tables(3, guidance_scale=GUIDANCE, adain_switch_step=1)
            mean, first = (
                torch.randn(1, 4, *size, device="cuda", dtype=dtype),
                torch.zeros(1, 4, 1, *size).cuda(),
            )
            inputs = device_array(mean), device_array(mean), device_array(first)
            posterior_sample(launch, *inputs, scaling_factor=0.18215, seed=1)
            options: dict[str, Any] = {"base_weight": NOISE_BASE_WEIGHT, "first_frame": inputs[2]}
            begin_loop(launch, loop.arrays, 3, seed=1, purpose=Purpose.VIDEO, **options)
            for _ in range(3):
                loop.noise_pred.normal_()
                latent_step(launch, loop.arrays)
            decoder = torch.zeros(3, 4, *size, device="cuda", dtype=dtype)
            decoder_input(launch, loop.arrays.final_latents, device_array(decoder), scaling_factor=0.18215)
            images = torch.randn(3, 3, *size, device="cuda").to(dtype)
            video = DeviceVideo(3, *size)
            count_decoded(launch, video.arrays, device_array(images))
            match_histograms(launch, video.arrays)
            decoded = torch.randn(1, 3, 2 * size[0], 2 * size[1], device="cuda").to(dtype)
            small, pixels = (
                torch.zeros(1, 3, *size, device="cuda", dtype=dtype),
                (2 * size[0], 2 * size[1], 3),
            )
            first_frame(launch, device_array(decoded), raw(pixels, np.uint8), device_array(small))
            torch.cuda.synchronize()
            assert loop.progress().item()[:2] == (3, NO_STEP)


def write_timings(out: Path) -> str:
    results = times.measure()
    path = out / f"kernels-{file_name(results['machine']['gpu'])}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return f"{path}\n{times.table(results)}"


if __name__ == "__main__":
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        every_kernel_once()
