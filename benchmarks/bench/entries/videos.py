# SPDX-License-Identifier: Apache-2.0
"""Entries of whole videos, of their stages through the public pipeline, and of the work between networks."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.bench.entries.networks import HELD_PER_WEIGHT
from lamp_trt.benchmarks.bench.harness import Entry
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.histogram import match_histograms
from lamp_trt.runtime.algorithm.latents import denoise_step
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.cuda.memory import memory_need
from lamp_trt.runtime.first_frame import missing_networks
from lamp_trt.runtime.load import load_pipeline
from lamp_trt.runtime.pipeline import LampPipeline

IN_FLIGHT = 2
"""Number of pipelines that make a video each at the same time, in threads of one process."""


class SharedPipeline:
    """One pipeline for all entries that are set up at the same time: loaded by the first, closed by the
    last."""

    def __init__(self, load: Callable[[], LampPipeline]) -> None:
        self._load, self._users = load, 0
        self._pipeline: LampPipeline | None = None

    @contextmanager
    def __call__(self) -> Iterator[LampPipeline]:
        if self._pipeline is None:
            self._pipeline = self._load()
        self._users += 1
        try:
            yield self._pipeline
        finally:
            self._users -= 1
            if not self._users:
                self._pipeline.close()
                self._pipeline = None


def video_entries(subject: Subject) -> list[Entry]:
    """Return the entries of a pipeline on the chosen device and backend. Empty for a bundle that makes no
    videos."""
    if not subject.makes_videos:
        return []
    options, manifest = subject.options, subject.bundle.manifest
    shared = SharedPipeline(partial(_load, subject))
    held = int(HELD_PER_WEIGHT * memory_need(manifest, subject.networks).weights)
    backend = subject.pipeline_backend
    prompted = not missing_networks(subject.bundle)

    def entry(name: str, work: Callable[[LampPipeline], Callable[[], Any]], **fields: Any) -> Entry:
        fields = {"group": "stages", "backend": backend, **fields}
        return Entry(name=name, setup=partial(_with, shared, work), **fields)

    entries = [
        entry("prompt to embeddings", _encoding_text(options.prompt), held_bytes=held),
        entry("image to latents", _encoding_image),
        entry("latents to frames", _decoding),
        entry("video of 1 step, from an image", _video(options.prompt, 1), group="videos", parts=_stages),
    ]
    if prompted:
        video = _video(options.prompt, 1, from_image=False)
        entries.append(entry("video of 1 step, from a prompt", video, group="videos", parts=_stages))
    if manifest.safety is not None:
        entries.append(entry("safety check of a video", _checking, held_bytes=held))
    if len(manifest.motions) > 1:
        entries.append(entry("motion switch", _switching, few=True))
    if options.full:
        steps = options.num_inference_steps
        whole: dict[str, Any] = {"group": "videos", "parts": _stages, "few": True}
        entries.append(
            entry(f"video of {steps} steps, from an image", _video(options.prompt, steps), **whole)
        )
        if prompted:
            video = _video(options.prompt, steps, from_image=False)
            entries.append(entry(f"video of {steps} steps, from a prompt", video, **whole))
            first = _first_frame(options.prompt, steps)
            entries.append(entry(f"first frame of {steps} steps, from a prompt", first, **whole))
        entries.append(
            Entry(
                name=f"a video of {steps} steps, {IN_FLIGHT} in flight",
                group="videos",
                backend=backend,
                setup=partial(_in_flight, subject, steps),
                clock="own",
                held_bytes=IN_FLIGHT * held,
                few=True,
            )
        )
    return entries


def _load(subject: Subject) -> LampPipeline:
    return load_pipeline(subject.bundle.path, subject.options.placement, expect_bundle=subject.bundle.digest)


@contextmanager
def _with(
    pipeline: Callable[[], AbstractContextManager[LampPipeline]],
    work: Callable[[LampPipeline], Callable[[], Any]],
) -> Iterator[Callable[[], Any]]:
    with pipeline() as loaded:
        yield work(loaded)


def _encoding_text(prompt: str) -> Callable[[LampPipeline], Callable[[], Any]]:
    return lambda pipeline: lambda: pipeline.encode_prompt(prompt)


def _encoding_image(pipeline: LampPipeline) -> Callable[[], Any]:
    picture = synthetic_picture(*pipeline.size)
    return lambda: pipeline.encode_first_frame(picture)


def _decoding(pipeline: LampPipeline) -> Callable[[], Any]:
    latents = _latents(pipeline.bundle.manifest.sizes)
    return lambda: pipeline.decode(latents)


def _checking(pipeline: LampPipeline) -> Callable[[], Any]:
    """Of all frames, as at the end of a video."""
    frames = np.stack([synthetic_picture(*pipeline.size)] * pipeline.num_frames)
    return lambda: pipeline.flags(frames)


def _video(
    prompt: str, steps: int, *, from_image: bool = True
) -> Callable[[LampPipeline], Callable[[], Any]]:
    def work(pipeline: LampPipeline) -> Callable[[], Any]:
        given: dict[str, Any] = {"first_frame_num_inference_steps": steps}
        if from_image:
            given = {"first_frame": synthetic_picture(*pipeline.size)}
        return lambda: pipeline(prompt, num_inference_steps=steps, **given)

    return work


def _first_frame(prompt: str, steps: int) -> Callable[[LampPipeline], Callable[[], Any]]:
    return lambda pipeline: lambda: pipeline.make_first_frame(prompt, num_inference_steps=steps)


def _switching(pipeline: LampPipeline) -> Callable[[], Any]:
    """Return a function that shows another motion at every call."""
    names = list(pipeline.bundle.manifest.motions)
    others = cycle([next(name for name in names if name != pipeline.motion), pipeline.motion])
    return lambda: pipeline.set_motion(next(others))


def _stages(made: Any) -> Mapping[str, float]:
    """Return the seconds by stage of a Video or a FirstFrame."""
    return {stage: seconds for stage, seconds in made.timings.items() if stage not in ("total", "motion")}


def between_entries(subject: Subject) -> list[Entry]:
    """Return the entries of the NumPy work between the networks. Empty on a GPU, and for a bundle that
    makes no videos."""
    if subject.ordinal is not None or not subject.makes_videos:
        return []
    sizes = subject.bundle.manifest.sizes
    schedule = ddim_schedule(50, subject.bundle.manifest.scheduler)
    latents = _latents(sizes)
    noise_pred = np.repeat(latents, 2, axis=0)
    shape = (sizes["num_frames"], sizes["height"], sizes["width"], 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def entry(name: str, function: Callable[[], Any]) -> Entry:
        return Entry(name=name, group="stages", backend="NumPy", setup=partial(_nothing_to_load, function))

    return [
        entry(
            "guidance, DDIM and AdaIN of a step",
            lambda: denoise_step(
                latents, noise_pred, 40, schedule, guidance_scale=12.5, preset="official", adain="schedule"
            ),
        ),
        entry("histogram matching", lambda: match_histograms(frames, "official")),
        entry("initial noise", lambda: latent_noise(0, Purpose.VIDEO, latents.shape)),
    ]


@contextmanager
def _nothing_to_load(function: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    yield function


def _latents(sizes: Mapping[str, int]) -> NDArray[np.float32]:
    shape = (1, 4, sizes["num_frames"], sizes["latent_height"], sizes["latent_width"])
    return latent_noise(1, Purpose.VIDEO, shape)


@contextmanager
def _in_flight(subject: Subject, steps: int) -> Iterator[Callable[[], float]]:
    """Yield a function that makes IN_FLIGHT videos at once and returns the seconds per video."""
    import time

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(IN_FLIGHT))
        make = _video(subject.options.prompt, steps)
        videos = [make(stack.enter_context(_load(subject))) for _ in range(IN_FLIGHT)]

        def run() -> float:
            start = time.perf_counter()
            for future in [pool.submit(video) for video in videos]:
                future.result()
            return (time.perf_counter() - start) / IN_FLIGHT

        yield run
