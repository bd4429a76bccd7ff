# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 over engines that run on host arrays, in NumPy: the plain one, reference of
runtime/cuda/stages.py."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP, SDXL
from lamp_trt.engine.precompute import HOISTED
from lamp_trt.runtime.algorithm import latents as latent_ops
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.host.loop import Latents, denoise_image, denoise_video, require_finite
from lamp_trt.runtime.media.image import Fit, Image, load_first_frame, model_input, resize_to
from lamp_trt.runtime.stages import (
    ImageJob,
    ImageStages,
    MadeImage,
    MadeVideo,
    TokenIds,
    VideoJob,
    timed,
)

Array = NDArray[Any]


class HostImageStages:
    """SDXL's networks by name, `engines`, and what the manifest says of them."""

    def __init__(self, manifest: Manifest, engines: Mapping[str, Engine]) -> None:
        self._manifest, self._engines = manifest, engines

    def make_image(self, job: ImageJob) -> MadeImage:
        timings: dict[str, float] = {}
        with timed(timings, "total"):
            with timed(timings, "text"):
                hidden_states, text_embeds = self.encode_text(job.ids, job.zero_negative)
            unet = self._engines[SDXL.unet]
            conditions = {
                "encoder_hidden_states": hidden_states,
                "text_embeds": text_embeds,
                "time_ids": time_ids(self._manifest.sizes),
            }
            noise = job.noise
            if noise is None:
                shape = self._manifest.networks[SDXL.unet].outputs[0].shape
                noise = latent_noise(job.seed, Purpose.SDXL_LATENTS, (1, *shape[1:]))
            with timed(timings, "denoise"):
                latents = denoise_image(
                    unet,
                    noise.astype(np.float32),
                    conditions,
                    job.schedule,
                    job.guidance_scale,
                    job.on_step,
                    beside=_beside(self._engines, SDXL.unet),
                )
            with timed(timings, "decode"):
                image = self._decode(latents)
        return MadeImage(image, latents, timings)

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Array, Array]:
        one = self._engines["sdxl_text_encoder"].run({"input_ids": ids[0]})
        two = self._engines["sdxl_text_encoder_2"].run({"input_ids": ids[1]})
        states = [output["penultimate_hidden_state"] for output in (one, two)]
        require_finite(states[0], "SDXL's first text encoder")
        require_finite(states[1], "SDXL's second text encoder")
        require_finite(two["text_embeds"], "SDXL's second text encoder")
        hidden_states, text_embeds = np.concatenate(states, axis=-1), two["text_embeds"]
        if zero_negative:
            hidden_states[0], text_embeds[0] = 0, 0
        return hidden_states, text_embeds

    def _decode(self, latents: Latents) -> Image:
        """Latents (1, 4, h, w) to uint8 RGB (height, width, 3), rounded as diffusers does."""
        decoder = self._engines["sdxl_vae_decoder"]
        scaled = latents / np.float32(self._manifest.scaling_factors[SDXL.vae])
        image = decoder.run({"latents": scaled.astype(decoder.inputs[0].dtype)})["image"]
        require_finite(image, "SDXL's VAE decoder")
        rounded: Image = uint8_frames(image, "round")[0]
        return rounded


class HostVideoStages:
    """The video's networks by name, `engines`, and what the manifest says of them. `image_stages` gives
    what makes first frames, when one is to be made; None for a bundle without SDXL."""

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        image_stages: Callable[[], ImageStages] | None,
    ) -> None:
        self._manifest, self._engines, self._image_stages = manifest, engines, image_stages

    def take_image(self, first_frame: Any, fit: Fit, background: str) -> Image:
        if not isinstance(first_frame, (str, os.PathLike, np.ndarray)):
            raise InputError(
                f"first_frame is a {type(first_frame).__name__}; on the CPU it is a file or a NumPy array."
            )
        sizes = self._manifest.sizes
        return load_first_frame(first_frame, sizes["height"], sizes["width"], fit, background)

    def set_motion(self, motion: str) -> None:
        self._engines[LAMP.unet].set_motion(motion)

    def make_video(self, job: VideoJob) -> MadeVideo:
        timings: dict[str, float] = {}
        made: MadeImage | None = None
        with timed(timings, "text"):
            text_embeddings = self.encode_text(job.ids)
        image = job.first_frame
        if isinstance(image, ImageJob):
            assert self._image_stages is not None
            with timed(timings, "make_first_frame"):
                made = self._image_stages().make_image(image)
            sizes = self._manifest.sizes
            image = resize_to(made.image, sizes["height"], sizes["width"], job.fit)
        with timed(timings, "first_frame"):
            first_frame_latents = self.encode_image(image, job.config.seed, job.posterior_noise)
        latents = self._initial_latents(job, first_frame_latents)
        with timed(timings, "denoise"):
            latents = denoise_video(
                self._engines[LAMP.unet],
                latents,
                text_embeddings,
                job.schedule,
                job.config,
                job.on_step,
                beside=_beside(self._engines, LAMP.unet),
            )
        with timed(timings, "decode"):
            frames = self.decode(latents)
        with timed(timings, "histogram"):
            frames = match_histograms(frames, job.config.histogram_mode)
        return MadeVideo(frames, latents, image, made, timings)

    def encode_text(self, ids: TokenIds) -> Array:
        embeddings = self._engines["text_encoder"].run({"input_ids": ids})["last_hidden_state"]
        require_finite(embeddings, "the text encoder")
        return embeddings

    def encode_image(self, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
        encoder = self._engines["vae_encoder"]
        output = encoder.run({"image": model_input(image, np.dtype(encoder.inputs[0].dtype).type)})
        mean, logvar = output["latent_mean"], output["latent_logvar"]
        require_finite(mean, "the VAE encoder")
        require_finite(logvar, "the VAE encoder")
        if posterior_noise is None:
            posterior_noise = latent_noise(seed, Purpose.POSTERIOR, mean.shape)
        return latent_ops.posterior_sample(mean, logvar, posterior_noise, self._scaling_factor)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        decoder = self._engines["vae_decoder"]
        batch, dtype = decoder.inputs[0].shape[0], np.dtype(decoder.inputs[0].dtype)
        scaled = (latents[0].swapaxes(0, 1) / np.float32(self._scaling_factor)).astype(dtype)  # (f, 4, h, w)
        padded = np.concatenate([scaled, np.repeat(scaled[-1:], -len(scaled) % batch, axis=0)])
        frames = []
        for start in range(0, len(padded), batch):
            images = decoder.run({"latents": padded[start : start + batch]})["image"]
            require_finite(images, f"the VAE decoder at frame {start}")
            frames.append(uint8_frames(images))
        return np.concatenate(frames)[: len(scaled)]

    @property
    def _scaling_factor(self) -> float:
        return self._manifest.scaling_factors[LAMP.vae]

    def _initial_latents(self, job: VideoJob, first_frame_latents: Latents) -> Latents:
        """What enters the first step, see runtime/algorithm/latents.py."""
        _, channels, _, height, width = first_frame_latents.shape
        config, noise, base_noise = job.config, job.noise, job.base_noise
        if noise is None:
            shape = (1, channels, self._manifest.sizes["num_frames"], height, width)
            noise = latent_noise(config.seed, Purpose.VIDEO, shape)
        if not config.mix_noise:
            return latent_ops.with_first_frame(noise, first_frame_latents)
        if base_noise is None and config.preset == "paper":
            base_noise = latent_noise(config.seed, Purpose.PAPER_BASE, (1, channels, 1, height, width))
        return latent_ops.mix_noise(noise, first_frame_latents, base_noise)


def _beside(engines: Mapping[str, Engine], unet: str) -> list[Engine]:
    return [engines[name] for name in HOISTED[unet] if name in engines]


def time_ids(sizes: Mapping[str, int]) -> NDArray[np.float32]:
    """SDXL's [original size, crop corner, target size] for an uncropped image of the size that is made,
    (2, 6): once for each half of guidance."""
    height, width = sizes["first_frame_height"], sizes["first_frame_width"]
    return np.repeat(np.array([[height, width, 0, 0, height, width]], np.float32), 2, axis=0)
