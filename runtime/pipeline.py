# SPDX-License-Identifier: Apache-2.0
"""LampPipeline: a prompt and a first frame in, a video out (Algorithm 1 of the LAMP paper)."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lamp_trt
from lamp_trt.engine.backend import Engine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.networks import VIDEO_NETWORKS
from lamp_trt.runtime import first_frame as sdxl
from lamp_trt.runtime import latents as latent_ops
from lamp_trt.runtime.config import Adain, GenerationConfig, Histogram, Preset, one_of, thread_count
from lamp_trt.runtime.ddim import ddim_schedule
from lamp_trt.runtime.first_frame import FirstFrame, FirstFrameMaker
from lamp_trt.runtime.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.image import Fit, load_first_frame, model_input, png_base64, resize_to
from lamp_trt.runtime.loop import Latents, StepCallback, denoise_video, require_finite
from lamp_trt.runtime.noise import Purpose, latent_noise
from lamp_trt.runtime.tokenizer import CLIPTokenizer, load_tokenizer
from lamp_trt.runtime.video import Video

Array = NDArray[Any]
Callback = Callable[["LampPipeline", int, int, dict[str, Array]], Mapping[str, Array] | None]


class LampPipeline:
    """One bundle, loaded: makes videos. Calls from several threads are served one after another.

    Made by `lamp_trt.load`. `engines` has one entry for each network that makes videos. SDXL's, three times
    as large, are loaded by `load_first_frame_maker` when the first first frame is to be made, and then kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        tokenizer: CLIPTokenizer,
        motion: str,
        load_first_frame_maker: Callable[[], FirstFrameMaker] | None = None,
    ) -> None:
        self.bundle = bundle
        self.motion = motion
        """The motion that the UNet shows now; a call may switch it."""
        self._engines, self._tokenizer = engines, tokenizer
        self._load_first_frame_maker = load_first_frame_maker or partial(sdxl.load_first_frame_maker, bundle)
        self._first_frame_maker: FirstFrameMaker | None = None
        self._lock = threading.Lock()

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

    def set_motion(self, motion: str) -> None:
        """Switch the UNet to a motion of the bundle; BundleError, listing the known, if there is none."""
        self.bundle.motion_path(motion)
        with self._lock:
            self._set_motion(motion)

    def __call__(
        self,
        prompt: str,
        *,
        motion: str | None = None,
        first_frame: str | Path | NDArray[np.uint8] | None = None,
        fit: Fit = "stretch",
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
        first_frame        an image file, or uint8 RGB (h, w, 3), of any size; None: SDXL makes it
        fit                how an image of another aspect ratio is fitted: "stretch" (official), "crop", "pad"
        first_frame_prompt what the first frame shows, for SDXL; None is `prompt`
        negative_prompt    of both, the first frame and the video. None: the empty prompt for the video, for
                           SDXL what its checkpoint says (see FirstFrameMaker)
        seed               0..2^64-1; the same seed gives the same video on the same machine and backend
        preset, adain, adain_switch_step, histogram: see runtime/config.py and docs/algorithm.md
        mix_noise          False for editing: `noise` holds DDIM-inverted latents and is used as given
        noise              (1, 4, f, h // 8, w // 8), instead of the seed's
        base_noise         (1, 4, 1, h // 8, w // 8), likewise, for preset "paper"
        first_frame_noise  (1, 4, h // 8, w // 8) of the first frame that SDXL makes, likewise
        posterior_noise    (1, 4, h // 8, w // 8), likewise; zeros give the posterior's mean
        callback_on_step_end  called at the video's steps as in diffusers: (pipeline, step, timestep,
                           {"latents": …}) → such a mapping or None; latents in it replace the current ones

        Raises InputError for arguments, BundleError for an unknown motion, EngineError if a network fails.
        """
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
        if noise is None and not mix_noise:
            raise InputError("mix_noise=False is for editing and needs `noise`: DDIM-inverted latents.")
        if base_noise is not None and (preset != "paper" or not mix_noise):
            raise InputError(
                'base_noise belongs to preset="paper" with mix_noise=True; nothing else uses it.'
            )
        motion = self.motion if motion is None else motion
        self.bundle.motion_path(motion)
        one_of("fit", fit, Fit)
        injected = {"noise": noise, "base_noise": base_noise, "posterior_noise": posterior_noise}
        self._check_shapes(injected)
        image = None if first_frame is None else load_first_frame(first_frame, *self.size, fit)
        made: FirstFrame | None = None
        schedule = ddim_schedule(num_inference_steps, self.bundle.manifest.scheduler)
        with self._lock:
            timings: dict[str, float] = {}
            with _timed(timings, "total"):
                with _timed(timings, "motion"):
                    self._set_motion(motion)
                with _timed(timings, "text"):
                    text_embeddings = self.encode_prompt(prompt, negative_prompt)
                if image is None:
                    with _timed(timings, "make_first_frame"):
                        made = self._make_first_frame(
                            prompt if first_frame_prompt is None else first_frame_prompt,
                            negative_prompt=negative_prompt,
                            seed=seed,
                            num_inference_steps=first_frame_num_inference_steps,
                            guidance_scale=first_frame_guidance_scale,
                            noise=first_frame_noise,
                        )
                    image = resize_to(made.image, *self.size, fit)
                with _timed(timings, "first_frame"):
                    first_frame_latents = self.encode_first_frame(image, seed, posterior_noise)
                latents = self._initial_latents(config, first_frame_latents, noise, base_noise)
                with _timed(timings, "denoise"):
                    latents = denoise_video(
                        self._engines["lamp_unet"],
                        latents,
                        text_embeddings,
                        schedule,
                        config,
                        _on_step(self, callback_on_step_end),
                    )
                with _timed(timings, "decode"):
                    frames = self.decode(latents)
                with _timed(timings, "histogram"):
                    frames = match_histograms(frames, config.histogram_mode)
        settings = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "motion": motion,
            **_video_settings(config),
            **(_first_frame_settings(made) if made else {}),
            "first_frame_png": png_base64(image),
            "injected": sorted(name for name, array in injected.items() if array is not None),
            "bundle": self.bundle.digest,
            "lamp_trt": lamp_trt.__version__,
        }
        return Video(frames, made.image if made else image, latents, timings, settings)

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
        with self._lock:
            return self._make_first_frame(
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
        missing = sdxl.missing_networks(self.bundle)
        if missing:
            raise InputError(
                f"no first frame: this bundle lacks {', '.join(missing)}, which would make one. "
                "Give first_frame, an image file (--first-frame IMAGE), or build them in: "
                f"lamp-trt build --sdxl DIR --out {self.bundle.path}"
            )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> Array:
        """Text embeddings (2, tokens, width): [negative or empty prompt, prompt]."""
        ids = sdxl.prompt_ids(self._tokenizer, (negative_prompt or "", prompt))
        output = self._engines["text_encoder"].run({"input_ids": ids})
        return self._finite("last_hidden_state", output, "the text encoder")

    def encode_first_frame(
        self, image: Array, seed: int = 0, posterior_noise: Array | None = None
    ) -> Latents:
        """uint8 RGB (height, width, 3) to first-frame latents (1, 4, 1, h, w), float32 and scaled.

        A sample of the VAE's posterior, as in the official script.
        """
        encoder = self._engines["vae_encoder"]
        output = encoder.run({"image": model_input(image, np.dtype(encoder.inputs[0].dtype).type)})
        mean = self._finite("latent_mean", output, "the VAE encoder")
        if posterior_noise is None:
            posterior_noise = latent_noise(seed, Purpose.POSTERIOR, mean.shape)
        return latent_ops.posterior_sample(
            mean, output["latent_logvar"], posterior_noise, self._scaling_factor
        )

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (1, 4, f, h, w) to frames uint8 (f, height, width, 3), before histogram matching."""
        decoder = self._engines["vae_decoder"]
        batch, dtype = decoder.inputs[0].shape[0], np.dtype(decoder.inputs[0].dtype)
        scaled = (latents[0].swapaxes(0, 1) / np.float32(self._scaling_factor)).astype(dtype)  # (f, 4, h, w)
        padded = np.concatenate([scaled, np.repeat(scaled[-1:], -len(scaled) % batch, axis=0)])
        images = []
        for start in range(0, len(padded), batch):
            output = decoder.run({"latents": padded[start : start + batch]})
            images.append(uint8_frames(self._finite("image", output, f"the VAE decoder at frame {start}")))
        return np.concatenate(images)[: len(scaled)]

    @property
    def _scaling_factor(self) -> float:
        return self.bundle.manifest.scaling_factors["vae"]

    def _check_shapes(self, noises: Mapping[str, Array | None]) -> None:
        """InputError for a given noise that is not of this bundle's size, before any work."""
        sizes = self.bundle.manifest.sizes
        picture = (sizes["latent_height"], sizes["latent_width"])
        expected = {
            "noise": (1, 4, self.num_frames, *picture),
            "base_noise": (1, 4, 1, *picture),
            "posterior_noise": (1, 4, *picture),
        }
        for name, shape in expected.items():
            array = noises[name]
            if array is not None and np.shape(array) != shape:
                raise InputError(f"{name} has shape {np.shape(array)}; expected {shape}.")

    def _initial_latents(
        self,
        config: GenerationConfig,
        first_frame_latents: Latents,
        noise: Array | None,
        base_noise: Array | None,
    ) -> Latents:
        """What enters the first step, see runtime/latents.py."""
        _, channels, _, height, width = first_frame_latents.shape
        if noise is None:
            noise = latent_noise(config.seed, Purpose.VIDEO, (1, channels, self.num_frames, height, width))
        if not config.mix_noise:
            return latent_ops.with_first_frame(noise, first_frame_latents)
        if base_noise is None and config.preset == "paper":
            base_noise = latent_noise(config.seed, Purpose.PAPER_BASE, (1, channels, 1, height, width))
        return latent_ops.mix_noise(noise, first_frame_latents, base_noise)

    def _make_first_frame(self, prompt: str, **arguments: Any) -> FirstFrame:
        if self._first_frame_maker is None:
            self._first_frame_maker = self._load_first_frame_maker()
        return self._first_frame_maker(prompt, **arguments)

    def _set_motion(self, motion: str) -> None:
        if motion != self.motion:
            self.bundle.check_unchanged()
        self._engines["lamp_unet"].set_motion(motion)
        self.motion = motion

    def _finite(self, name: str, output: Mapping[str, Array], where: str) -> Array:
        require_finite(output[name], where)
        return output[name]


def load_pipeline(
    bundle: str | PathLike[str],
    *,
    device: str = "auto",
    backend: str = "auto",
    motion: str | None = None,
    num_threads: int | None = None,
    expect_bundle: str | None = None,
) -> LampPipeline:
    """Open a bundle and load its networks; see `lamp_trt.load`."""
    from lamp_trt.engine.backend_onnxruntime import OnnxRuntimeEngine

    if device not in ("auto", "cpu"):
        raise InputError(f"device is {device!r}; this version runs on 'cpu' ('auto' picks it).")
    if backend not in ("auto", "onnxruntime"):
        raise InputError(f"backend is {backend!r}; this version runs on 'onnxruntime' ('auto' picks it).")
    num_threads = thread_count(num_threads)
    opened = Bundle.open(bundle, expect_digest=expect_bundle)
    missing = [name for name in VIDEO_NETWORKS if name not in opened.manifest.networks]
    if missing:
        raise BundleError(
            f"{opened.path} cannot make videos, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sd DIR --motion NAME=DIR --out {opened.path}"
        )
    motion = motion if motion is not None else opened.manifest.default_motion
    opened.motion_path(motion)
    assert motion is not None
    engines = {
        name: OnnxRuntimeEngine(
            opened, name, motion=motion if name == "lamp_unet" else None, num_threads=num_threads
        )
        for name in VIDEO_NETWORKS
    }
    tokenizer = load_tokenizer(opened.tokenizer_folder("tokenizer"), opened.manifest.sizes["tokens"])
    opened.check_unchanged()
    load_maker = partial(sdxl.load_first_frame_maker, opened, num_threads=num_threads)
    return LampPipeline(opened, engines, tokenizer, motion, load_maker)


def _video_settings(config: GenerationConfig) -> dict[str, Any]:
    """The fields of `config` that shape a video from a given first frame."""
    return {name: value for name, value in asdict(config).items() if not name.startswith("first_frame_")}


def _first_frame_settings(made: FirstFrame) -> dict[str, Any]:
    """How the first frame was made. Injected noise is not told of: the sidecar holds the image."""
    names = ("prompt", "num_inference_steps", "guidance_scale")
    return {f"first_frame_{name}": made.settings[name] for name in names}


def _on_step(pipeline: LampPipeline, callback: Callback | None) -> StepCallback | None:
    """`callback` in the form that the loop calls."""
    if callback is None:
        return None

    def on_step(step: int, timestep: int, latents: Latents) -> Latents:
        changed = callback(pipeline, step, timestep, {"latents": latents})
        return latents if changed is None else changed.get("latents", latents)

    return on_step


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
