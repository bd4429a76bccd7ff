# SPDX-License-Identifier: Apache-2.0
"""LampPipeline: a prompt and a first frame in, a video out (Algorithm 1 of the LAMP paper)."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt._version import __version__
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import (
    MAX_SEED,
    Adain,
    GenerationConfig,
    Histogram,
    Preset,
    one_of,
    plain_text,
    whole_number,
)
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.noise import check_noise
from lamp_trt.runtime.first_frame import FirstFrame, FirstFrameMaker, missing_networks, prompt_ids
from lamp_trt.runtime.host.loop import Latents, StepCallback
from lamp_trt.runtime.media.image import Fit, png_base64
from lamp_trt.runtime.media.image_colour import background_rgb
from lamp_trt.runtime.media.tokenizer import CLIPTokenizer
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.stages import ImageJob, VideoJob, VideoStages, timed

Array = NDArray[Any]
Callback = Callable[["LampPipeline", int, int, dict[str, Array]], Mapping[str, Array] | None]


class LampPipeline:
    """One bundle, loaded: makes videos. Calls from several threads are served one after another.

    Made by `lamp_trt.load`. `first_frames` is None for a bundle without SDXL's networks, which otherwise are
    loaded when the first first frame is to be made, and then kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        stages: VideoStages,
        tokenizer: CLIPTokenizer,
        motion: str,
        first_frames: FirstFrameMaker | None = None,
    ) -> None:
        self.bundle = bundle
        self.motion = motion
        """The motion that the UNet shows now; a call may switch it."""
        self._stages, self._tokenizer, self._first_frames = stages, tokenizer, first_frames
        self._lock = threading.Lock()
        self._busy_thread: int | None = None

    def __repr__(self) -> str:
        motions = ", ".join(self.bundle.manifest.motions)
        return f"LampPipeline({str(self.bundle.path)!r}, motions: {motions})"

    @property
    def num_frames(self) -> int:
        return self.bundle.manifest.sizes["num_frames"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the videos in pixels."""
        sizes = self.bundle.manifest.sizes
        return sizes["height"], sizes["width"]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread after another. InputError where a thread would wait for itself, in a callback."""
        if self._busy_thread == threading.get_ident():
            raise InputError(
                "a pipeline cannot be used from its own callback: keep the latents and use it when the call "
                "has returned, or load a second one."
            )
        with self._lock:
            self._busy_thread = threading.get_ident()
            try:
                yield
            finally:
                self._busy_thread = None

    def set_motion(self, motion: str) -> None:
        """Switch the UNet to a motion of the bundle; BundleError, listing the known, if there is none."""
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
        mix_noise: bool = True,
        noise: Array | None = None,
        base_noise: Array | None = None,
        first_frame_noise: Array | None = None,
        posterior_noise: Array | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> Video:
        """Make one video.

        prompt             what moves; text beyond the text encoder's 77 tokens is cut, with a warning
        motion             one of the bundle's motions; None keeps the current one
        first_frame        an image file, or uint8 RGB (h, w, 3), of any size; None: SDXL makes it. On a GPU
                           also a CUDA array (DLPack or __cuda_array_interface__), which is not copied to the
                           host: uint8 (height, width, 3), or (1, 3, height, width) in [-1, 1] and in the
                           bundle's precision
        fit                how an image of another aspect ratio is fitted: "stretch" (official), "crop", "pad"
        background         the colour behind transparent pixels of an image file: #rrggbb or a name of CSS
        first_frame_prompt what the first frame shows, for SDXL; None is `prompt`
        negative_prompt    of both, the first frame and the video. None: the empty prompt for the video, for
                           SDXL what its checkpoint says (see FirstFrameMaker)
        seed               0..2^64-1; the same seed gives the same video on the same machine and backend
        preset, adain, adain_switch_step, histogram: see runtime/algorithm/config.py and docs/algorithm.md
        mix_noise          False for editing: `noise` holds DDIM-inverted latents and is used as given
        noise              (1, 4, f, h // 8, w // 8), instead of the seed's
        base_noise         (1, 4, 1, h // 8, w // 8), likewise, for preset "paper"
        first_frame_noise  (1, 4, h // 8, w // 8) of the first frame that SDXL makes, likewise
        posterior_noise    (1, 4, h // 8, w // 8), likewise; zeros give the posterior's mean
        callback_on_step_end  called at the video's steps as in diffusers: (pipeline, step, timestep,
                           {"latents": …}) → such a mapping or None; latents in it replace the current ones

        Raises InputError for arguments, BundleError for an unknown motion, EngineError if a network fails.
        """
        prompt = plain_text("prompt", prompt)
        negative_prompt, first_frame_prompt, motion = (
            None if value is None else plain_text(name, value)
            for name, value in (
                ("negative_prompt", negative_prompt),
                ("first_frame_prompt", first_frame_prompt),
                ("motion", motion),
            )
        )
        on_step = _on_step(self, callback_on_step_end)
        fit = one_of("fit", fit, Fit)
        config = GenerationConfig(
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            first_frame_num_inference_steps=first_frame_num_inference_steps,
            first_frame_guidance_scale=first_frame_guidance_scale,
            preset=preset,
            adain=adain,
            adain_switch_step=adain_switch_step,
            histogram=histogram,
            mix_noise=mix_noise,
        )
        if first_frame is None:
            self.require_first_frame_networks()
        elif first_frame_prompt is not None or first_frame_noise is not None:
            raise InputError("give either first_frame, or first_frame_prompt and first_frame_noise for SDXL.")
        if noise is None and not config.mix_noise:
            raise InputError("mix_noise=False is for editing and needs `noise`: DDIM-inverted latents.")
        if base_noise is not None and (config.preset != "paper" or not config.mix_noise):
            raise InputError(
                'base_noise belongs to preset="paper" with mix_noise=True; nothing else uses it.'
            )
        motion = self.motion if motion is None else motion
        self.bundle.motion(motion)
        background_rgb(background)
        injected = {"noise": noise, "base_noise": base_noise, "posterior_noise": posterior_noise}
        self._check_shapes(injected)
        with self._alone():
            source: Any = None
            if first_frame is not None:
                source = self._stages.take_image(first_frame, fit, background)
            else:
                source = self._first_frame_maker().job(
                    prompt if first_frame_prompt is None else first_frame_prompt,
                    negative_prompt=negative_prompt,
                    seed=seed,
                    num_inference_steps=first_frame_num_inference_steps,
                    guidance_scale=first_frame_guidance_scale,
                    noise=first_frame_noise,
                )
            job = VideoJob(
                prompt_ids(self._tokenizer, (negative_prompt or "", prompt)),
                source,
                fit,
                ddim_schedule(config.num_inference_steps, self.bundle.manifest.scheduler),
                config,
                noise,
                base_noise,
                posterior_noise,
                on_step,
            )
            timings: dict[str, float] = {}
            with timed(timings, "total"):
                with timed(timings, "motion"):
                    self._set_motion(motion)
                video = self._stages.make_video(job)
        settings = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "motion": motion,
            **_video_settings(config),
            **(
                _first_frame_settings(source, prompt if first_frame_prompt is None else first_frame_prompt)
                if video.made
                else {}
            ),
            "first_frame_png": png_base64(video.first_frame),
            "injected": sorted(name for name, array in injected.items() if array is not None),
            "bundle": self.bundle.digest,
            "lamp_trt": __version__,
        }
        shown = video.made.image if video.made else video.first_frame
        return Video(video.frames, shown, video.latents, {**timings, **video.timings}, settings)

    def make_first_frame(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        noise: Array | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> FirstFrame:
        """Make only the first frame of a call with these first-frame arguments; see FirstFrameMaker.

        Its `image`, given as `first_frame`, makes the video that the call without it would make. Raises
        InputError, also for a bundle without SDXL's networks, and EngineError if a network fails.
        """
        self.require_first_frame_networks()
        with self._alone():
            return self._first_frame_maker()(
                prompt,
                negative_prompt=negative_prompt,
                seed=seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                noise=noise,
                on_step=_on_step(self, callback_on_step_end),
            )

    def require_first_frame_networks(self) -> None:
        """InputError if this bundle can make videos from given first frames only."""
        missing = missing_networks(self.bundle)
        if missing:
            raise InputError(
                f"no first frame: this bundle lacks {', '.join(missing)}, which would make one. "
                "Give first_frame, an image file (--first-frame IMAGE), or build them in: "
                f"lamp-trt build --sdxl DIR --out {self.bundle.path}"
            )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> Array:
        """Text embeddings (2, tokens, width): [negative or empty prompt, prompt]."""
        negative = "" if negative_prompt is None else plain_text("negative_prompt", negative_prompt)
        ids = prompt_ids(self._tokenizer, (negative, plain_text("prompt", prompt)))
        with self._alone():
            return self._stages.encode_text(ids)

    def encode_first_frame(
        self, image: NDArray[np.uint8], seed: int = 0, posterior_noise: Array | None = None
    ) -> Latents:
        """uint8 RGB (height, width, 3) to first-frame latents (1, 4, 1, h, w), float32 and scaled.

        A sample of the VAE's posterior, as in the official script.
        """
        seed = whole_number("seed", seed, 0, MAX_SEED)
        with self._alone():
            return self._stages.encode_image(image, seed, posterior_noise)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (1, 4, f, h, w) to frames uint8 (f, height, width, 3), before histogram matching."""
        with self._alone():
            return self._stages.decode(latents)

    def _check_shapes(self, noises: Mapping[str, Array | None]) -> None:
        """InputError for a given noise that is none of this bundle's size, before any work."""
        sizes = self.bundle.manifest.sizes
        picture = (sizes["latent_height"], sizes["latent_width"])
        expected = {
            "noise": (1, 4, self.num_frames, *picture),
            "base_noise": (1, 4, 1, *picture),
            "posterior_noise": (1, 4, *picture),
        }
        for name, shape in expected.items():
            if noises[name] is not None:
                check_noise(name, noises[name], shape)

    def _first_frame_maker(self) -> FirstFrameMaker:
        assert self._first_frames is not None
        return self._first_frames

    def _set_motion(self, motion: str) -> None:
        """Only the motion's own file must be as it was opened: what else is shown is loaded already, and what
        an engine reads besides it checks itself."""
        if motion == self.motion:
            self._stages.set_motion(motion)
            return
        own = [self.bundle.motion(motion).file]
        self.bundle.check_unchanged(own)
        self._stages.set_motion(motion)
        self.bundle.check_unchanged(own)  # it could be replaced in between
        self.motion = motion


def _video_settings(config: GenerationConfig) -> dict[str, Any]:
    """The fields of `config` that shape a video from a given first frame."""
    return {name: value for name, value in asdict(config).items() if not name.startswith("first_frame_")}


def _first_frame_settings(job: ImageJob, prompt: str) -> dict[str, Any]:
    """How the first frame was made. Injected noise is not told of: the sidecar holds the image."""
    return {
        "first_frame_prompt": prompt,
        "first_frame_num_inference_steps": len(job.schedule),
        "first_frame_guidance_scale": job.guidance_scale,
    }


def _on_step(pipeline: LampPipeline, callback: Callback | None) -> StepCallback | None:
    """`callback` in the form that the loop calls."""
    if callback is None:
        return None
    if not callable(callback):
        raise InputError(f"callback_on_step_end is {callback!r:.100}; expected a function.")

    def on_step(step: int, timestep: int, latents: Latents) -> Latents:
        changed = callback(pipeline, step, timestep, {"latents": latents})
        if changed is None:
            return latents
        if not isinstance(changed, Mapping):
            raise InputError(f"callback_on_step_end returned {changed!r:.100}; expected a mapping or None.")
        if "latents" in changed:
            check_noise("the latents of callback_on_step_end", changed["latents"], latents.shape)
        return changed.get("latents", latents).astype(np.float32, copy=False)

    return on_step
