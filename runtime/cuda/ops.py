# SPDX-License-Identifier: Apache-2.0
"""LAMP's operations on a device, all enqueued; the reference is HostVideoOps in host/ops.py.

Only token ids, tables and given images are uploaded, only final frames and latents downloaded. Exception: a
first frame made by SDXL that is not exactly twice the video's size is fitted by OpenCV on the host.
"""

from typing import Any

import numpy as np

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP, VIDEO_NETWORKS
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.runtime.algorithm.config import GenerationConfig, Histogram
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.cuda.capture import CapturedWork
from lamp_trt.runtime.cuda.conditions import Conditions
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.image_ops import CudaImageOps, CudaOps
from lamp_trt.runtime.cuda.loop import DeviceLoop
from lamp_trt.runtime.cuda.work import DeviceWork
from lamp_trt.runtime.finite import TEXT_ENCODER, VAE_DECODER, VAE_ENCODER
from lamp_trt.runtime.kernels import frames as kernels
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.launch import PROGRESS
from lamp_trt.runtime.media.image import Image, load_first_frame, resize_to
from lamp_trt.runtime.ops import Array, Loop, TokenIds, decode_windows


class CudaVideoOps(CudaOps):
    """LAMP's operations, see ops.VideoOps. SDXL's networks are loaded when a first frame is made."""

    def __init__(self, manifest: Manifest, engines: EngineSet) -> None:
        device = engines.device
        networks = (*VIDEO_NETWORKS, *precompute_networks(manifest, LAMP.unet))
        super().__init__(manifest, engines, DeviceWork(device), networks, "making videos")
        self._images: CudaImageOps | None = None
        self._size = (manifest.sizes["height"], manifest.sizes["width"])
        self._scaling = manifest.scaling_factors[LAMP.vae]
        self._text = engines.add("text_encoder")
        given = {"encoder_hidden_states": self._text.arrays["last_hidden_state"]}
        self._conditions = Conditions(engines, manifest, LAMP.unet, given)
        self._encoder, self._decoder = engines.add("vae_encoder"), engines.add("vae_decoder")
        engines.share_scratch()
        unet = self._conditions.unet
        time, preview = self._conditions.time, manifest.previews.get(LAMP.vae)
        self._loop = DeviceLoop(device, unet, lambda: engines.generation, time, preview)
        _, channels, frames, *picture = unet.arrays["sample"].shape
        self._noise = device.empty((1, channels, frames, *picture), np.float32)
        self._base_noise = device.empty((1, channels, 1, *picture), np.float32)
        self._posterior_noise = device.empty((1, channels, *picture), np.float32)
        self._first_frame = device.empty((1, channels, 1, *picture), np.float32)
        self._pixels = device.empty((*self._size, 3), np.uint8)
        latents = self._decoder.arrays["latents"]
        self._to_decode = device.empty((frames, *latents.shape[1:]), latents.dtype)
        progress, self._decoded = device.mapped(PROGRESS)
        self._histograms = kernels.HistogramArrays(
            device.empty((frames, *self._size, 3), np.uint8),
            device.empty((frames, kernels.HISTOGRAM_PARTS, 3, 256), np.uint32),
            device.empty((frames, 3, 256), np.uint8),
            progress,
        )
        self._decoding = CapturedWork(
            device, self._decoder, self._decode_frames, lambda: engines.generation, "the decoding of a video"
        )
        self._loop.prepare()
        self._decoding.prepare(before=lambda: device.zero(self._to_decode))

    def images(self) -> CudaImageOps:
        if self._images is None:
            self._images = CudaImageOps(self._manifest, self._engines, self._work, self._safety)
        return self._images

    def take_image(self, first_frame: Any, config: GenerationConfig) -> Any:
        """A file or host array of any size, fitted; or a CUDA array, not copied: uint8 (h, w, 3) of the
        video's size, or the VAE encoder's input. Raises InputError for another shape or dtype."""
        view = self._device.view(first_frame)
        if view is None:
            return load_first_frame(first_frame, *self._size, config.fit, config.background)
        image = self._encoder.arrays["image"]
        accepted = [((*self._size, 3), np.dtype(np.uint8)), (image.shape, image.dtype)]
        if (view.shape, view.dtype) not in accepted:
            wanted = " or ".join(f"{dtype} {shape}" for shape, dtype in accepted)
            raise InputError(f"the first frame on the GPU is {view.dtype} {view.shape}; expected {wanted}.")
        return view

    def set_motion(self, motion: str) -> None:
        self._device.synchronize()
        if self._conditions.unet.engine.set_motion(motion):
            self._engines.share_scratch()  # a motion's own engine may need more
            self._loop.invalidate()
            self._loop.prepare()

    def encode_text(self, ids: TokenIds) -> DeviceArray:
        self._device.upload(self._text.arrays["input_ids"], ids)
        self._text.enqueue()
        self._conditions.enqueue_text()
        embeddings = self._text.arrays["last_hidden_state"]
        self._work.cause(embeddings, TEXT_ENCODER)
        return embeddings

    def fit(self, decoded: DeviceArray, config: GenerationConfig) -> tuple[DeviceArray, DeviceArray | Image]:
        """See ops.VideoOps. Halved on the device if the sizes allow it, otherwise fitted on the host, which
        waits for the stream."""
        images, target = self.images(), self._encoder.arrays["image"]
        half = decoded.shape[2:] == tuple(2 * size for size in self._size)
        if half and decoded.dtype.itemsize >= target.dtype.itemsize:
            return images.pixels(decoded, target), target
        pixels = images.pixels(decoded)
        return pixels, resize_to(self._device.download(pixels), *self._size, config.fit)

    def encode_image(
        self, image: DeviceArray | Image, seed: int, posterior_noise: Array | None
    ) -> DeviceArray:
        launch, target = self._device.launch, self._encoder.arrays["image"]
        if not isinstance(image, DeviceArray):
            self._device.upload(self._pixels, image)
            kernels.model_input(launch, self._pixels, target)
        elif image.dtype == np.uint8:
            kernels.model_input(launch, image, target)
        elif image.pointer != target.pointer:
            self._device.copy(target, image)
        self._encoder.enqueue()
        kernels.posterior_sample(
            launch,
            self._encoder.arrays["latent_mean"],
            self._encoder.arrays["latent_logvar"],
            self._first_frame,
            scaling_factor=self._scaling,
            seed=seed,
            noise=self._uploaded(self._posterior_noise, posterior_noise),
        )
        self._work.cause(self._first_frame, VAE_ENCODER)
        return self._first_frame

    def animated(self, image: DeviceArray | Image) -> Image:
        if not isinstance(image, DeviceArray):
            return image
        x = self._device.download(self._encoder.arrays["image"])[0].astype(np.float32)
        levels: Image = np.rint((x + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(levels)

    def denoise(
        self, loop: Loop, text: DeviceArray, first_frame: DeviceArray | None, control: Control
    ) -> DeviceArray:
        self._loop.begin(
            loop.timesteps,
            loop.rows,
            prompt_changed=False,
            seed=loop.seed,
            purpose=loop.purpose,
            noise=self._uploaded(self._noise, loop.noise),
            base_weight=loop.base_weight,
            base_purpose=loop.base_purpose,
            base_noise=self._uploaded(self._base_noise, loop.base_noise),
            first_frame=first_frame,
        )
        self._loop.run(loop, self._work, control)
        return self._loop.final_latents

    def put(self, latents: Latents) -> DeviceArray:
        self._device.upload(self._loop.final_latents, latents.astype(np.float32))
        return self._loop.final_latents

    def decode(self, latents: DeviceArray, control: Control) -> DeviceArray:
        """See ops.VideoOps. Also counts the frames' histograms for `match`."""
        self._decoding.prepare()
        self._decoded[:] = 0
        kernels.decoder_input(self._device.launch, latents, self._to_decode, scaling_factor=self._scaling)
        self._decoding.enqueue()
        self._require_finite_image(self._decoded, self._decoder.arrays["image"], VAE_DECODER)
        return self._histograms.frames

    def _decode_frames(self) -> None:
        """Decode all frames, batch by batch, and count them."""
        decoder = self._decoder
        frames, batch = self._to_decode.shape[0], decoder.arrays["latents"].shape[0]
        for start in decode_windows(frames, batch):
            self._device.copy(decoder.arrays["latents"], self._to_decode.rows(start, start + batch))
            decoder.enqueue()
            kernels.count_decoded(self._device.launch, self._histograms, decoder.arrays["image"], start)

    def match(self, frames: DeviceArray, mode: Histogram) -> DeviceArray:
        kernels.match_histograms(self._device.launch, self._histograms, mode)
        return frames
