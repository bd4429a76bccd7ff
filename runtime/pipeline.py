# SPDX-License-Identifier: Apache-2.0
"""LampPipeline: makes videos from a prompt and a first frame (Algorithm 1 of the LAMP paper)."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lamp_trt._version import __version__
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP, SDXL
from lamp_trt.runtime import stages
from lamp_trt.runtime.algorithm.config import (
    MAX_SEED,
    SETTINGS,
    Adain,
    Fit,
    GenerationConfig,
    Histogram,
    Preset,
    Safety,
    SafetyCrops,
    plain_text,
    whole_number,
)
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.callbacks import Callback, step_callback
from lamp_trt.runtime.control import CancelToken, Control, Progress
from lamp_trt.runtime.first_frame import FirstFrame, FirstFrameMaker, missing_networks, prompt_ids
from lamp_trt.runtime.media.image import png_base64
from lamp_trt.runtime.media.tokenizer import CLIPTokenizer
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.ops import StepCallback, VideoOps
from lamp_trt.runtime.preview import PREVIEW_SECONDS, Preview, previews_from, require_preview_maps
from lamp_trt.runtime.requests import NOISES, FirstFrameRequest, InversionRequest, VideoRequest
from lamp_trt.runtime.safety.check import FIRST_FRAME, SafetyCheck, SafetyPolicy
from lamp_trt.runtime.stages import NO_CONTROL, InversionJob, VideoJob, make_video, with_total

Array = NDArray[Any]

_LOCK_SECONDS = 0.05
"""Interval at which a call that waits for another thread checks its cancel token."""


class LampPipeline:
    """A loaded bundle that makes videos. Calls from several threads run one after another.

    Created by `lamp_trt.load`; a context manager that closes it. `first_frames` is None for a bundle without
    SDXL's networks; otherwise they are loaded when the first first frame is made, and then kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        ops: VideoOps,
        tokenizer: CLIPTokenizer,
        motion: str,
        first_frames: FirstFrameMaker | None = None,
        cpu_precision: CpuPrecision | None = None,
        runner: str = "",
    ) -> None:
        self.bundle = bundle
        self.motion = motion
        """The current motion of the UNet; a call may switch it."""
        self.cpu_precision = cpu_precision
        """The arithmetic that was requested at loading."""
        self.runner = runner
        """Backend and device, like "openvino on the CPU"."""
        self._ops, self._tokenizer, self._first_frames = ops, tokenizer, first_frames
        self._safety = first_frames.safety if first_frames else SafetyPolicy(bundle.manifest)
        self._lock = threading.Lock()
        self._busy_thread: int | None = None
        self._closed = False

    def __repr__(self) -> str:
        motions = ", ".join(self.bundle.manifest.motions)
        return f"LampPipeline({str(self.bundle.path)!r}, motions: {motions})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the networks and their memory, after any video that another thread is making. A second call
        does nothing; any other later use raises InputError."""
        if self._closed:
            return
        with self._alone():
            self._closed = True
            if self._first_frames is not None:
                self._first_frames.close()
            self._ops.close()

    @property
    def num_frames(self) -> int:
        return self.bundle.manifest.sizes["num_frames"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the videos in pixels."""
        sizes = self.bundle.manifest.sizes
        return sizes["height"], sizes["width"]

    @property
    def latents_shape(self) -> tuple[int, ...]:
        """(1, 4, f, h, w) of a video's latents."""
        sizes = self.bundle.manifest.sizes
        return 1, 4, self.num_frames, sizes["latent_height"], sizes["latent_width"]

    @contextmanager
    def _alone(self, control: Control = NO_CONTROL) -> Iterator[None]:
        """A context that admits one thread at a time.

        Raises Cancelled if cancelled while waiting, and InputError for a call from the pipeline's own
        callback (which would deadlock) or on a closed pipeline.
        """
        if self._busy_thread == threading.get_ident():
            raise InputError(
                "a pipeline cannot be used from its own callback: keep the latents and use it when the call "
                "has returned, or load a second one."
            )
        while not self._lock.acquire(timeout=_LOCK_SECONDS):
            control.check()
        try:
            self._busy_thread = threading.get_ident()
            if self._closed:
                raise InputError("this pipeline was closed; load the bundle again.")
            yield
        finally:
            self._busy_thread = None
            self._lock.release()

    def set_motion(self, motion: str) -> None:
        """Switch the UNet to a motion of the bundle. Raises BundleError, listing the known, if unknown."""
        motion = plain_text("motion", motion)
        self.bundle.motion(motion)
        with self._alone():
            self._set_motion(motion)

    def __call__(
        self,
        prompt: str,
        *,
        motion: str | None = None,
        first_frame: str | Path | NDArray[np.uint8] | Any | None = None,
        fit: Fit = "stretch",
        background: str = "white",
        first_frame_prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.5,
        first_frame_num_inference_steps: int = 50,
        first_frame_guidance_scale: float = 5.0,
        preset: Preset = "official",
        adain: Adain = "schedule",
        adain_switch_step: int | None = None,
        histogram: Histogram | None = None,
        safety: Safety | None = None,
        safety_crops: SafetyCrops = "all",
        mix_noise: bool = True,
        noise: Array | None = None,
        base_noise: Array | None = None,
        first_frame_noise: Array | None = None,
        posterior_noise: Array | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
        preview_interval: float = PREVIEW_SECONDS,
        cancel: CancelToken | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> Video:
        """Make one video. For settings not listed here see GenerationConfig and docs/algorithm.md.

        prompt             description of the motion; text beyond 77 tokens is cut, with a warning
        motion             one of the bundle's motions; None keeps the current one
        first_frame        an image file, or uint8 RGB (h, w, 3), of any size; None: SDXL makes it. On a GPU
                           also a CUDA array (DLPack or __cuda_array_interface__), which is not copied to the
                           host: uint8 (height, width, 3), or (1, 3, height, width) in [-1, 1] and in the
                           bundle's precision
        safety             for pictures that the bundle's safety checker flags: "refuse" raises SafetyError,
                           for the first frame before the loop; "report" returns the video, flagged in its
                           settings' safety_flagged; "off" checks nothing; None: "refuse" if the bundle has a
                           safety checker, else a warning that it has none
        safety_crops       parts of each frame: "all", or "official", the centre square alone
        noise, base_noise, first_frame_noise, posterior_noise: replace noise from the seed, see VideoRequest
        progress           called after steps with (stage, done, total), see control.Progress
        preview            called with small pictures while a loop runs, (stage, step, frames), and at least
                           `preview_interval` seconds between: see preview.Preview, docs/previews.md
        cancel             a threading.Event: once it is set, the call raises Cancelled within a few steps
        callback_on_step_end  called after each of the video's steps as in diffusers: (pipeline, step,
                           timestep, {"latents": …}) → such a mapping or None; its latents replace the current
                           ones. On a GPU the device waits for it at each step, unlike for those above

        The same seed gives the same video on the same machine and backend. Raises InputError for invalid
        arguments, BundleError for an unknown motion, SafetyError for a refused first frame or video,
        EngineError if a network fails, Cancelled if cancelled.
        """
        given = locals()
        config = GenerationConfig(**{each.name: given[each.name] for each in SETTINGS})
        request = VideoRequest(prompt, config, motion, first_frame, **{name: given[name] for name in NOISES})
        control = Control(progress, cancel, previews_from(preview, preview_interval))
        return self._make_video(request, control, step_callback(self, callback_on_step_end))

    def _make_video(self, request: VideoRequest, control: Control, on_step: StepCallback | None) -> Video:
        if request.first_frame is None:
            self.require_first_frame_networks()
        motion = self.motion if request.motion is None else request.motion
        self.bundle.motion(motion)
        safety = self.safety_check(request.config)
        if control.previews:
            self.require_previews(request.config, made=request.first_frame is None)
        request.check_shapes(*self.latents_shape[2:])
        with self._alone(control):
            job = self._job(request, on_step, safety)
            start = time.perf_counter()
            self._set_motion(motion)
            timings = {"motion": time.perf_counter() - start}
            made = make_video(self._ops, job, control)
        settings = {
            "prompt": request.prompt,
            "negative_prompt": request.config.negative_prompt,
            "motion": motion,
            **request.config.kept("video"),
            **(_first_frame_settings(request) if made.made else {}),
            "first_frame_png": png_base64(made.first_frame),
            "safety_flagged": made.flagged,
            "injected": request.injected,
            "cpu_precision": self.cpu_precision,
            "bundle": self.bundle.digest,
            "lamp_trt": __version__,
        }
        shown = made.made.image if made.made else made.first_frame
        timings = with_total({**timings, **made.timings})
        return Video(made.frames, shown, made.latents, timings, settings)

    def require_previews(self, config: GenerationConfig, *, made: bool) -> None:
        """Raise InputError if the bundle lacks what previews of such a call need. made: SDXL makes the first
        frame, whose loop has previews unless a check may refuse it."""
        safety = self.safety_check(config)
        of_first_frame = made and (safety is None or safety.report)
        vaes = [LAMP.vae, *([SDXL.vae] if of_first_frame else [])]
        require_preview_maps(self.bundle.manifest, vaes, self.bundle.path)

    def safety_check(self, config: GenerationConfig) -> SafetyCheck | None:
        """How a call with these settings checks its pictures, None: not at all. InputError for a check that
        the bundle cannot make."""
        return self._safety.check(config.safety, config.safety_crops)

    def _job(
        self, request: VideoRequest, on_step: StepCallback | None, safety: SafetyCheck | None
    ) -> VideoJob:
        config = request.config
        if request.first_frame is not None:
            first_frame = self._ops.take_image(request.first_frame, config)
        else:
            first_frame = self._first_frame_maker().job(request.first_frame_request())
        return VideoJob(
            prompt_ids(self._tokenizer, (config.negative_prompt or "", request.prompt)),
            first_frame,
            ddim_schedule(config.num_inference_steps, self.bundle.manifest.scheduler),
            config,
            request.noise,
            request.base_noise,
            request.posterior_noise,
            on_step,
            safety,
        )

    def make_first_frame(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        safety: Safety | None = None,
        safety_crops: SafetyCrops = "all",
        noise: Array | None = None,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> FirstFrame:
        """Make only the first frame of a video, with SDXL; see FirstFrameRequest.

        Passing its `image` as `first_frame` gives the same video as letting the call make it. Raises
        InputError, also for a bundle without SDXL's networks, SafetyError, EngineError if a network fails,
        and Cancelled.
        """
        request = FirstFrameRequest(
            prompt,
            negative_prompt,
            seed,
            num_inference_steps,
            guidance_scale,
            noise,
            safety,
            safety_crops,
        )
        control, on_step = Control(progress, cancel), step_callback(self, callback_on_step_end)
        self.require_first_frame_networks()
        with self._alone(control):
            return self._first_frame_maker()(request, on_step=on_step, control=control)

    def require_first_frame_networks(self) -> None:
        """Raise InputError if the bundle lacks networks for making first frames."""
        missing = missing_networks(self.bundle)
        if missing:
            raise InputError(
                f"no first frame: this bundle lacks {', '.join(missing)}, which would make one. "
                "Give first_frame, an image file (--first-frame IMAGE), or build them in: "
                f"lamp-trt build --sdxl DIR --out {self.bundle.path}"
            )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> Array:
        """Encode prompts to text embeddings (2, tokens, width): [negative or empty prompt, prompt]."""
        negative = "" if negative_prompt is None else plain_text("negative_prompt", negative_prompt)
        ids = prompt_ids(self._tokenizer, (negative, plain_text("prompt", prompt)))
        with self._alone():
            return stages.encode_prompt(self._ops, ids)

    def encode_first_frame(
        self, image: NDArray[np.uint8], seed: int = 0, posterior_noise: Array | None = None
    ) -> Latents:
        """Encode uint8 RGB (height, width, 3) to first-frame latents (1, 4, 1, h, w), float32 and scaled.

        They are a sample of the VAE's posterior, as in the official script.
        """
        seed = whole_number("seed", seed, 0, MAX_SEED)
        with self._alone():
            return stages.encode_first_frame(self._ops, image, seed, posterior_noise)

    def invert(
        self,
        frames: NDArray[np.uint8],
        *,
        motion: str | None = None,
        num_inference_steps: int = 50,
        fit: Fit = "stretch",
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> Latents:
        """Invert a clip by DDIM: latents (1, 4, f, h // 8, w // 8) that the loop turns into the clip again.

        An edit passes them as `noise` with mix_noise=False, and the same motion and steps: docs/editing.md.
        frames: uint8 RGB (f, h, w, 3), as many as the bundle's videos have, fitted to their size. Raises as a
        call does.
        """
        request = InversionRequest(frames, num_inference_steps, motion, fit)
        motion = self.motion if request.motion is None else request.motion
        self.bundle.motion(motion)
        job = InversionJob(
            prompt_ids(self._tokenizer, ("", "")),
            request.fitted_frames(self.num_frames, *self.size),
            self.latents_shape,
            ddim_schedule(request.num_inference_steps, self.bundle.manifest.scheduler),
        )
        control = Control(progress, cancel)
        with self._alone(control):
            self._set_motion(motion)
            return stages.invert(self._ops, job, control)

    def check_first_frame(self, image: NDArray[np.uint8], config: GenerationConfig) -> None:
        """Raise SafetyError if a call with these settings refuses this first frame, uint8 (h, w, 3)."""
        check = self.safety_check(config)
        if check is not None and not check.report:
            with self._alone():
                stages.are_flagged(self._ops, check, image[None], FIRST_FRAME)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Decode latents (1, 4, f, h, w) to uint8 frames (f, height, width, 3); no histogram matching."""
        with self._alone():
            return stages.decode(self._ops, latents)

    def flags(self, frames: NDArray[np.uint8], safety_crops: SafetyCrops = "all") -> bool:
        """Whether the bundle's safety checker flags any of frames uint8 (n, h, w, 3), of any size.

        Raises InputError for other arrays and for a bundle without a safety checker, SafetyError if the
        checker fails.
        """
        if not isinstance(frames, np.ndarray):
            raise InputError(f"frames are a {type(frames).__name__}; expected a NumPy array.")
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] != 3 or not frames.size:
            raise InputError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (n, h, w, 3).")
        config = GenerationConfig(safety="report", safety_crops=safety_crops)
        check = self.safety_check(config)
        assert check is not None
        with self._alone():
            return stages.are_flagged(self._ops, check, frames)

    def _first_frame_maker(self) -> FirstFrameMaker:
        assert self._first_frames is not None
        return self._first_frames

    def _set_motion(self, motion: str) -> None:
        """Switch the UNet to `motion`. Raises BundleError if the motion's file changed since the bundle was
        opened; other files are loaded already, or checked by the engine that reads them."""
        if motion == self.motion:
            self._ops.set_motion(motion)
            return
        own = [self.bundle.motion(motion).file]
        self.bundle.check_unchanged(own)
        self._ops.set_motion(motion)
        self.bundle.check_unchanged(own)  # it could be replaced in between
        self.motion = motion


def _first_frame_settings(request: VideoRequest) -> dict[str, Any]:
    """Settings of a first frame made by SDXL. Injected noise is omitted: the sidecar stores the image."""
    prompt = request.first_frame_request().prompt
    return {**request.config.kept("first_frame"), "first_frame_prompt": prompt}
