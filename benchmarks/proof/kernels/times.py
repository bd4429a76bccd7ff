# SPDX-License-Identifier: Apache-2.0
"""Times of the kernels against PyTorch eager, torch.compile and the official per-frame loop, on a GPU.

    python -m lamp_trt.benchmarks.proof.kernels.times [--filter WORD] [--out FILE.json] [--compare OLD.json]
    python -m lamp_trt.benchmarks.proof.kernels.times --table FILE.json

A case is one kernel at LAMP's size (16 frames, 320x512). Each form of it is timed twice: as a CUDA graph, and
launched from Python. A row also holds the parity with the NumPy twin. Targets were written down before the
first measurement: latent_step <= 5 us, noise <= 5 us, hist_match <= 40 us, each within a graph.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamp_trt.benchmarks.proof.kernels import forms
from lamp_trt.benchmarks.proof.kernels.arrays import DeviceLoop, DeviceVideo, launcher, raw
from lamp_trt.benchmarks.proof.timing import Timing, copy_bandwidth_gbs, machine, time_calls
from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.ddim import ddim_schedule, step_coefficients
from lamp_trt.runtime.algorithm.histogram import match_histograms as match_histograms_twin
from lamp_trt.runtime.algorithm.histogram import uint8_frames
from lamp_trt.runtime.algorithm.latents import denoise_step, final_adain, mix_noise
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.kernels.arrays import device_array
from lamp_trt.runtime.kernels.frames import count_decoded, first_frame, match_histograms
from lamp_trt.runtime.kernels.latent_loop import begin_loop, latent_step
from lamp_trt.runtime.media.image import model_input, resize_to

FRAMES, LATENT_HEIGHT, LATENT_WIDTH = 16, 40, 64
HEIGHT, WIDTH = 8 * LATENT_HEIGHT, 8 * LATENT_WIDTH
LATENTS = 4 * FRAMES * LATENT_HEIGHT * LATENT_WIDTH
PIXELS = FRAMES * HEIGHT * WIDTH
STEPS, GUIDANCE = 50, 12.5

OURS = "lamp-trt"


@dataclass(frozen=True)
class Form:
    """One implementation of a case's work. calls: number of times that one run does it; error: parity
    after the last run."""

    name: str
    run: Callable[[], object]
    error: Callable[[], float | None]
    calls: int = 1


@dataclass(frozen=True)
class Case:
    """One kernel's work at one size. bytes_moved: least number of bytes read and written."""

    name: str
    bytes_moved: int
    target_us: float | None
    error_unit: str
    setup: Callable[[], Iterator[Form]]


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    case: str
    form: str
    graph: Timing
    launched: Timing
    bytes_moved: int
    gbs: float
    share_of_copy: float
    target_us: float | None
    error: float | None
    error_unit: str


def plain(name: str, function: Callable[[], Any], error: Callable[[Any], float | None]) -> Form:
    """Return a PyTorch form whose result is that of `function`."""
    results: list[Any] = [None]

    def run() -> None:
        results[0] = function()

    return Form(name, run, lambda: error(results[0]))


def eager_and_compiled(
    function: Callable[..., Any], arguments: tuple[Any, ...], error: Callable[[Any], float | None]
) -> Iterator[Form]:
    yield plain("PyTorch eager", lambda: function(*arguments), error)
    compiled = torch.compile(function, dynamic=False)
    yield plain("torch.compile", lambda: compiled(*arguments), error)


def latent_step_forms() -> Iterator[Form]:
    """Yield late steps of preset official, matched to frame 0; one run has 50, and a reset of the counter."""
    torch.manual_seed(0)
    loop = DeviceLoop((2, 4, FRAMES, LATENT_HEIGHT, LATENT_WIDTH))
    loop.fill_tables(STEPS, guidance_scale=GUIDANCE, adain_switch_step=0)
    loop.noise_pred.normal_()
    begin_loop(launcher(), loop.arrays, STEPS, seed=0, purpose=Purpose.VIDEO, base_weight=NOISE_BASE_WEIGHT)
    schedule, noise_pred = ddim_schedule(STEPS), loop.noise_pred.float().cpu().numpy()
    initial = loop.latents[:1].clone()
    counter = loop.arrays.state.owner
    assert isinstance(counter, torch.Tensor)
    kernels = launcher()

    def run() -> None:
        counter[:4].zero_()
        loop.latents[0].copy_(initial[0])
        for _ in range(STEPS):
            latent_step(kernels, loop.arrays)

    def error() -> float:
        want = initial.cpu().numpy()
        for i in range(STEPS):
            want = denoise_step(want, noise_pred, i, schedule, guidance_scale=GUIDANCE, adain_switch_step=0)
        return largest_error(loop.latents[0], final_adain(want)[0])

    yield Form(OURS, run, error, STEPS)
    ddim = step_coefficients(schedule.alpha_t[0], schedule.alpha_prev[0])
    arguments = (initial[0], loop.noise_pred, ddim, GUIDANCE)
    want = denoise_step(
        initial.cpu().numpy(), noise_pred, 0, schedule, guidance_scale=GUIDANCE, adain_switch_step=0
    )[0]

    def parity(result: Any) -> float:
        return largest_error(result[0], want)

    yield from eager_and_compiled(forms.step, arguments, parity)
    yield plain("official loop", lambda: forms.official_step(*arguments), parity)


def noise_forms() -> Iterator[Form]:
    """Yield forms of the initial noise, without parity for torch's, which draws other numbers."""
    loop = DeviceLoop((2, 4, FRAMES, LATENT_HEIGHT, LATENT_WIDTH))
    first = torch.randn(1, 4, 1, LATENT_HEIGHT, LATENT_WIDTH, device="cuda")
    kernels, first_array = launcher(), device_array(first)

    def run() -> None:
        begin_loop(
            kernels,
            loop.arrays,
            STEPS,
            seed=7,
            purpose=Purpose.VIDEO,
            base_weight=NOISE_BASE_WEIGHT,
            first_frame=first_array,
        )

    def error() -> float:
        drawn = latent_noise(7, Purpose.VIDEO, (1, *loop.latents.shape[1:]))
        return largest_error(loop.latents[0], mix_noise(drawn, first.cpu().numpy())[0])

    yield Form(OURS, run, error)
    yield from eager_and_compiled(forms.noise, (first[0], FRAMES, torch.float16), lambda _: None)


def hist_match_forms() -> Iterator[Form]:
    """Yield forms from the decoder's fp16 images; error is the share of values that differ from the
    twin's."""
    torch.manual_seed(0)
    coarse = torch.randn(FRAMES, 3, HEIGHT // 16, WIDTH // 16, device="cuda")
    images = 0.5 * torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear")
    images = (images + 0.02 * torch.randn_like(images)).half()
    video, kernels, source = DeviceVideo(FRAMES, HEIGHT, WIDTH), launcher(), device_array(images)
    frames = uint8_frames(images.cpu().numpy())
    official, exact = (match_histograms_twin(frames, mode) for mode in ("official", "exact"))

    def run() -> None:
        count_decoded(kernels, video.arrays, source)
        match_histograms(kernels, video.arrays, "official")

    yield Form(OURS, run, lambda: share_different(video.frames, official))
    arguments = (images,)
    yield from eager_and_compiled(forms.histogram_match, arguments, lambda x: share_different(x, exact))


def first_frame_forms() -> Iterator[Form]:
    """Yield forms from SDXL's fp32 image to the SD encoder's fp16 input; error is the share of values that
    differ."""
    torch.manual_seed(0)
    decoded = 0.7 * torch.randn(1, 3, 2 * HEIGHT, 2 * WIDTH, device="cuda")
    image = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.float16, device="cuda")
    pixels, kernels = raw((2 * HEIGHT, 2 * WIDTH, 3), np.uint8), launcher()
    arrays = device_array(decoded), pixels, device_array(image)
    twin = uint8_frames(decoded.cpu().numpy(), rounding="round")[0]
    want = model_input(resize_to(twin, HEIGHT, WIDTH), np.float16)
    yield Form(OURS, lambda: first_frame(kernels, *arrays), lambda: share_different(image, want))
    arguments = (decoded, torch.float16)
    yield from eager_and_compiled(forms.first_frame, arguments, lambda x: share_different(x[1], want))


CASES = [
    Case("latent_step", LATENTS * (4 + 4 + 2 * 2 + 2 * 2), 5, "max abs", latent_step_forms),
    Case("noise", LATENTS * (4 + 2 * 2), 5, "max abs", noise_forms),
    Case("hist_match", 3 * PIXELS * (2 + 1 + 1 + 1), 40, "share", hist_match_forms),
    Case("first_frame", 3 * HEIGHT * WIDTH * (4 * 4 + 4 + 2), None, "share", first_frame_forms),
]


def largest_error(got: torch.Tensor, want: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got.float().cpu().numpy() - want).max())


def share_different(got: torch.Tensor, want: np.ndarray[Any, Any]) -> float:
    return float((got.cpu().numpy() != want).mean())


def measure(word: str = "") -> dict[str, Any]:
    """Measure all cases whose name holds `word`: {"machine", "copy_gbs", "rows"}."""
    rows = []
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        copy_gbs = copy_bandwidth_gbs()
        for case in CASES:
            if word not in case.name:
                continue
            for form in case.setup():
                launched = time_calls(form.run, form.calls, graph=False)
                graph = time_calls(form.run, form.calls, graph=True)
                torch.cuda.synchronize()
                gbs = case.bytes_moved / graph.median_us / 1e3
                row = Row(
                    case.name,
                    form.name,
                    graph,
                    launched,
                    case.bytes_moved,
                    gbs,
                    gbs / copy_gbs,
                    case.target_us if form.name == OURS else None,
                    form.error(),
                    case.error_unit,
                )
                rows.append(asdict(row))
                print(f"{case.name} {form.name}: {graph.median_us:.1f} us", file=sys.stderr)
    return {"machine": machine(), "l2": "warm", "copy_gbs": copy_gbs, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table: one line per case and form."""
    facts = results["machine"]
    lines = [
        f"{facts['gpu']}, {facts['power_limit']}, driver {facts['driver']}, CUDA {facts['cuda']}, "
        f"torch {facts['torch']}, commit {facts['commit'][:10]}, {facts['date']}; L2 {results['l2']}; "
        f"a device copy moves {results['copy_gbs']:.0f} GB/s.",
        "",
        "| case | form | graph, us (p10-p90) | speed-up | launched, us (p10-p90) | GB/s (of copy) | error |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = {row["case"]: row["graph"]["median_us"] for row in results["rows"] if row["form"] == OURS}
    for row in results["rows"]:
        target = f", target {row['target_us']:g}" if row["target_us"] else ""
        error = "" if row["error"] is None else f"{row['error']:.1e} {row['error_unit']}"
        lines.append(
            f"| {row['case']} | {row['form']} | {spread(row['graph'])}{target} "
            f"| {row['graph']['median_us'] / ours[row['case']]:.1f}x | {spread(row['launched'])} "
            f"| {row['gbs']:.0f} ({row['share_of_copy']:.0%}) | {error} |"
        )
    return "\n".join(lines)


def spread(timing: dict[str, float]) -> str:
    return f"{timing['median_us']:.1f} ({timing['p10_us']:.1f}-{timing['p90_us']:.1f})"


def comparison(results: dict[str, Any], old: dict[str, Any]) -> str:
    """Return the medians of both files as lines, where both have the row."""
    before = {(row["case"], row["form"]): row["graph"]["median_us"] for row in old["rows"]}
    lines = []
    for row in results["rows"]:
        key, now = (row["case"], row["form"]), row["graph"]["median_us"]
        if key in before:
            lines.append(
                f"{key[0]:12} {key[1]:14} {before[key]:9.1f} -> {now:9.1f} us  {before[key] / now:.2f}x"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter", default="", help="only cases whose name holds this")
    parser.add_argument("--out", type=Path, help="file to write the results to")
    parser.add_argument("--compare", type=Path, help="earlier results to compare with")
    parser.add_argument("--table", type=Path, help="print the table of a results file, measure nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: these timings need one", file=sys.stderr)
        return 1
    results = measure(options.filter)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    if options.compare:
        print(comparison(results, json.loads(options.compare.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
