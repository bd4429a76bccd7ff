# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1's operations in NumPy with engines on host arrays; the reference for cuda/ops.py.

Operations are synchronous.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP, SDXL
from lamp_trt.engine.precompute import HOISTED
from lamp_trt.runtime.algorithm import latents as latent_ops
from lamp_trt.runtime.algorithm.config import GenerationConfig, Histogram
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.finite import (
    SDXL_DECODER,
    SDXL_TEXT_ENCODERS,
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
    require_finite,
)
from lamp_trt.runtime.host.engines import HostEngines
from lamp_trt.runtime.host.loop import initial_latents, run_loop
from lamp_trt.runtime.host.safety import HostSafetyNetwork
from lamp_trt.runtime.media.image import Image, load_first_frame, model_input, resize_to
from lamp_trt.runtime.ops import Array, ImageOps, Loop, TokenIds, decode_windows, time_ids


class HostClock:
    """Wall clock, see ops.Clock."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)


class HostOps:
    """Operations common to both families. safety: runs the safety checker,
    shared by both; None for a bundle without one."""

    def __init__(
        self, manifest: Manifest, engines: HostEngines, safety: HostSafetyNetwork | None = None
    ) -> None:
        self._manifest, self._engines, self._safety = manifest, engines, safety

    @contextmanager
    def working(self, control: Control) -> Iterator[HostClock]:
        control.check()
        yield self.clock()

    def clock(self) -> HostClock:
        return HostClock()

    def finish(self, control: Control) -> None:
        control.check()

    def safety_cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        assert self._safety is not None
        return self._safety.cosines(pixel_values)

    def fetch(self, value: Any) -> Array:
        array: Array = value
        return array

    def close(self) -> None:
        self._engines.close()
        if self._safety is not None:
            self._safety.close()

    def _precompute_engines(self, unet: str) -> list[Engine]:
        """The engines that precompute inputs of a UNet."""
        return [self._engines[name] for name in HOISTED[unet] if name in self._engines]


class HostImageOps(HostOps):
    """SDXL's operations, see ops.ImageOps."""

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Array, Array]:
        one = self._engines["sdxl_text_encoder"].run({"input_ids": ids[0]})
        two = self._engines["sdxl_text_encoder_2"].run({"input_ids": ids[1]})
        first, second = one["penultimate_hidden_state"], two["penultimate_hidden_state"]
        embeds = two["text_embeds"]
        for array in (first, second, embeds) if zero_negative else ():
            array[0] = 0
        require_finite(first, SDXL_TEXT_ENCODERS[0])
        require_finite(second, SDXL_TEXT_ENCODERS[1])
        require_finite(embeds, SDXL_TEXT_ENCODERS[1])
        return np.concatenate([first, second], axis=-1), embeds

    def denoise(self, loop: Loop, text: tuple[Array, Array], control: Control) -> Latents:
        unet = self._engines[SDXL.unet]
        latents = initial_latents(loop, (1, *unet.outputs[0].shape[1:]))
        hidden_states, text_embeds = text
        conditions = {
            "encoder_hidden_states": hidden_states,
            "text_embeds": text_embeds,
            "time_ids": time_ids(self._manifest.sizes),
        }
        precompute, preview = self._precompute_engines(SDXL.unet), self._manifest.previews.get(SDXL.vae)
        return run_loop(unet, precompute, loop, latents, conditions, control, preview)

    def decode(self, latents: Latents) -> Array:
        decoder = self._engines["sdxl_vae_decoder"]
        scaled = latents / np.float32(self._manifest.scaling_factors[SDXL.vae])
        image = decoder.run({"latents": scaled.astype(decoder.inputs[0].dtype)})["image"]
        require_finite(image, SDXL_DECODER)
        return image

    def pixels(self, decoded: Array) -> Image:
        rounded: Image = uint8_frames(decoded, "round")[0]
        return rounded


class HostVideoOps(HostOps):
    """LAMP's operations, see ops.VideoOps. load_images: returns SDXL's operations; None without SDXL."""

    def __init__(
        self,
        manifest: Manifest,
        engines: HostEngines,
        load_images: Callable[[], ImageOps] | None = None,
        safety: HostSafetyNetwork | None = None,
    ) -> None:
        super().__init__(manifest, engines, safety)
        self._load_images = load_images
        self._size = (manifest.sizes["height"], manifest.sizes["width"])
        self._scaling = np.float32(manifest.scaling_factors[LAMP.vae])

    def images(self) -> ImageOps:
        assert self._load_images is not None
        return self._load_images()

    def take_image(self, first_frame: Any, config: GenerationConfig) -> Image:
        if not isinstance(first_frame, (str, os.PathLike, np.ndarray)):
            raise InputError(
                f"first_frame is a {type(first_frame).__name__}; on the CPU it is a file or a NumPy array."
            )
        return load_first_frame(first_frame, *self._size, config.fit, config.background)

    def set_motion(self, motion: str) -> None:
        self._engines.set_motion(motion)

    def encode_text(self, ids: TokenIds) -> Array:
        embeddings = self._engines["text_encoder"].run({"input_ids": ids})["last_hidden_state"]
        require_finite(embeddings, TEXT_ENCODER)
        return embeddings

    def fit(self, decoded: Array, config: GenerationConfig) -> tuple[Image, Image]:
        pixels: Image = uint8_frames(decoded, "round")[0]
        return pixels, resize_to(pixels, *self._size, config.fit)

    def encode_image(self, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
        encoder = self._engines["vae_encoder"]
        output = encoder.run({"image": model_input(image, np.dtype(encoder.inputs[0].dtype).type)})
        mean, logvar = output["latent_mean"], output["latent_logvar"]
        require_finite(mean, VAE_ENCODER)
        require_finite(logvar, VAE_ENCODER)
        if posterior_noise is None:
            posterior_noise = latent_noise(seed, Purpose.POSTERIOR, mean.shape)
        return latent_ops.posterior_sample(mean, logvar, posterior_noise, float(self._scaling))

    def animated(self, image: Image) -> Image:
        return image

    def denoise(self, loop: Loop, text: Array, first_frame: Latents | None, control: Control) -> Latents:
        unet = self._engines[LAMP.unet]
        latents = initial_latents(loop, (1, *unet.outputs[0].shape[1:]), first_frame)
        conditions = {"encoder_hidden_states": text}
        precompute, preview = self._precompute_engines(LAMP.unet), self._manifest.previews.get(LAMP.vae)
        return run_loop(unet, precompute, loop, latents, conditions, control, preview)

    def put(self, latents: Latents) -> Latents:
        return latents

    def decode(self, latents: Latents, control: Control) -> NDArray[np.uint8]:
        decoder = self._engines["vae_decoder"]
        batch, dtype = decoder.inputs[0].shape[0], np.dtype(decoder.inputs[0].dtype)
        scaled = (latents[0].swapaxes(0, 1) / self._scaling).astype(dtype)  # (f, 4, h, w)
        frames = np.empty((len(scaled), *self._size, 3), np.uint8)
        for start in decode_windows(len(scaled), batch):
            control.check()
            images = decoder.run({"latents": scaled[start : start + batch]})["image"]
            require_finite(images, f"{VAE_DECODER} at frame {start}")
            frames[start : start + batch] = uint8_frames(images)
        return frames

    def match(self, frames: NDArray[np.uint8], mode: Histogram) -> NDArray[np.uint8]:
        return match_histograms(frames, mode)
