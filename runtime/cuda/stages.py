# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 on one device: enqueued as a whole, from token ids to the last frame, with no host round trip.

The reference is runtime/host/stages.py. Only token ids, tables and given images go up, only finished bytes
and latents come down. A first frame that is not exactly twice the video's size is fitted by OpenCV on the
host, between two halves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import LAMP, VIDEO_NETWORKS
from lamp_trt.engine.precompute import networks_beside
from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.latents import StepMode, final_adain, step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.cuda.common import (
    Conditions,
    Marks,
    guided_ids,
    require_finite_array,
    require_no_nan,
)
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.images import CudaImageStages
from lamp_trt.runtime.cuda.loop import DeviceLoop, Shown, watch
from lamp_trt.runtime.cuda.memory import memory_need, require_memory
from lamp_trt.runtime.host.loop import Latents
from lamp_trt.runtime.kernels import frames as kernels
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.launch import PROGRESS
from lamp_trt.runtime.media.image import Fit, Image, load_first_frame, resize_to
from lamp_trt.runtime.stages import ImageJob, MadeImage, MadeVideo, TokenIds, VideoJob

Array = NDArray[Any]


class CudaVideoStages:
    """The video's networks on the device; SDXL's are loaded too when a first frame is to be made. EngineError
    if memory is short."""

    def __init__(self, manifest: Manifest, engines: EngineSet) -> None:
        device = engines.device
        networks = (*VIDEO_NETWORKS, *networks_beside(manifest, LAMP.unet))
        require_memory(memory_need(manifest, networks), device.free_bytes(), "making videos")
        self._manifest, self._device, self._engines = manifest, device, engines
        self._images: CudaImageStages | None = None
        sizes = manifest.sizes
        self._size = (sizes["height"], sizes["width"])
        self._text = engines.add("text_encoder")
        given = {"encoder_hidden_states": self._text.arrays["last_hidden_state"]}
        self._conditions = Conditions(engines, manifest, LAMP.unet, given)
        self._encoder, self._decoder = engines.add("vae_encoder"), engines.add("vae_decoder")
        engines.share_scratch()
        unet = self._conditions.unet
        self._loop = DeviceLoop(device, unet, "denoising", lambda: engines.generation, self._conditions.time)
        _, channels, frames, height, width = unet.arrays["sample"].shape
        picture, f32 = (height, width), np.float32
        self._noise = device.empty((1, channels, frames, *picture), f32)
        self._base_noise = device.empty((1, channels, 1, *picture), f32)
        self._posterior_noise = device.empty((1, channels, *picture), f32)
        self._first_frame = device.empty((1, channels, 1, *picture), f32)
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
        self._loop.prepare()

    def image_stages(self) -> CudaImageStages:
        """SDXL's, loaded if they are not yet."""
        if self._images is None:
            self._images = CudaImageStages(self._manifest, self._engines)
        return self._images

    def take_image(self, first_frame: Any, fit: Fit, background: str) -> Any:
        """A given first frame as make_video takes it: a file or host array of any size, fitted; or a CUDA
        array that stays where it is: uint8 (h, w, 3) of the video's size, or the VAE encoder's own input."""
        view = self._device.view(first_frame)
        if view is None:
            return load_first_frame(first_frame, *self._size, fit, background)
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

    def make_video(self, job: VideoJob) -> MadeVideo:
        self._device.synchronize()
        marks, shown = Marks(self._device), []
        self._decoded[:] = 0
        made: MadeImage | None = None
        image_job = job.first_frame if isinstance(job.first_frame, ImageJob) else None
        if image_job is None:
            image = self._enqueue_given_image(job.first_frame)
        else:
            image_marks = Marks(self._device)
            shown += self.image_stages().enqueue(image_job, image_marks)
            image, made = self._enqueue_made_image(image_job, job.fit, image_marks)
            marks.end("make_first_frame")
        self._enqueue_text(guided_ids(job.ids, job.config.guidance_scale))
        self._conditions.enqueue_text()
        marks.end("text")
        self._enqueue_first_frame_latents(job.config.seed, job.posterior_noise)
        marks.end("first_frame")
        shown += self._enqueue_loop(job)
        marks.end("denoise")
        self._enqueue_decoding()
        marks.end("decode")
        kernels.match_histograms(self._device.launch, self._histograms, job.config.histogram_mode)
        watch(self._device, marks.end("histogram"), shown)
        seconds = marks.seconds()
        if image_job is not None and made is None:
            made = self.image_stages().collect(image_job, image_marks)
        self._require_finite(job)
        if image is None:
            image = self._download_first_frame()
        frames = self._device.download(self._histograms.frames)
        latents = self._device.download(self._loop.final_latents)
        return MadeVideo(frames, latents, image, made, seconds)

    def encode_text(self, ids: TokenIds) -> Array:
        self._enqueue_text(ids)
        return self._device.download(self._text.arrays["last_hidden_state"])

    def encode_image(self, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
        self._enqueue_given_image(image)
        self._enqueue_first_frame_latents(seed, posterior_noise)
        return self._device.download(self._first_frame)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        self._decoded[:] = 0
        self._device.upload(self._loop.final_latents, latents.astype(np.float32))
        self._enqueue_decoding()
        frames: NDArray[np.uint8] = self._device.download(self._histograms.frames)
        require_no_nan(self._decoded, "the VAE decoder")
        return frames

    def _enqueue_text(self, ids: TokenIds) -> None:
        self._device.upload(self._text.arrays["input_ids"], ids)
        self._text.enqueue()

    def _enqueue_given_image(self, image: Any) -> Image | None:
        """Into the encoder's input; the image on the host, or None where it never was there."""
        encoder_input = self._encoder.arrays["image"]
        if not isinstance(image, DeviceArray):
            self._device.upload(self._pixels, image)
            kernels.model_input(self._device.launch, self._pixels, encoder_input)
            given: Image = image
            return given
        if image.dtype == np.uint8:
            self._device.copy(self._pixels, image)
            kernels.model_input(self._device.launch, image, encoder_input)
        else:
            self._device.copy(encoder_input, image)
        return None

    def _enqueue_made_image(
        self, job: ImageJob, fit: Fit, marks: Marks
    ) -> tuple[Image | None, MadeImage | None]:
        """SDXL's decoded image into the encoder's input: halved on the device, (None, None); or fitted on the
        host, which waits for it: what the encoder is given, and what was made."""
        images, encoder_input = self.image_stages(), self._encoder.arrays["image"]
        half = images.decoded.shape[2:] == tuple(2 * size for size in self._size)
        narrows = images.decoded.dtype.itemsize >= encoder_input.dtype.itemsize
        if half and narrows:
            images.enqueue_pixels(encoder_input)
            marks.end("decode")
            return None, None
        images.enqueue_pixels()
        marks.end("decode")
        self._device.synchronize()
        made = images.collect(job, marks)
        return self._enqueue_given_image(resize_to(made.image, *self._size, fit)), made

    def _download_first_frame(self) -> Image:
        """The image that was animated, from the encoder's input."""
        x = self._device.download(self._encoder.arrays["image"])[0].astype(np.float32)
        image: Image = np.rint((x + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(image)

    def _enqueue_first_frame_latents(self, seed: int, posterior_noise: Array | None) -> None:
        self._encoder.enqueue()
        if posterior_noise is not None:
            self._device.upload(self._posterior_noise, np.asarray(posterior_noise, np.float32))
        kernels.posterior_sample(
            self._device.launch,
            self._encoder.arrays["latent_mean"],
            self._encoder.arrays["latent_logvar"],
            self._first_frame,
            scaling_factor=self._manifest.scaling_factors[LAMP.vae],
            seed=seed,
            noise=self._posterior_noise if posterior_noise is not None else None,
        )

    def _enqueue_loop(self, job: VideoJob) -> list[Shown]:
        config, schedule, n = job.config, job.schedule, len(job.schedule)
        rows = step_table(
            schedule,
            guidance_scale=config.guidance_scale,
            preset=config.preset,
            adain=config.adain,
            adain_switch_step=config.adain_switch_step,
        )
        if job.on_step is not None:
            rows["mode"] &= ~np.uint32(StepMode.FINAL_TO_FRAME_0)
        noise, base_noise = (
            self._uploaded(target, values)
            for target, values in ((self._noise, job.noise), (self._base_noise, job.base_noise))
        )
        paper = config.preset == "paper" and config.mix_noise
        self._loop.begin(
            schedule.timesteps,
            rows,
            prompt_changed=False,
            seed=config.seed,
            purpose=Purpose.VIDEO,
            noise=noise,
            base_weight=NOISE_BASE_WEIGHT if config.mix_noise else 0.0,
            base_purpose=Purpose.PAPER_BASE if paper else None,
            base_noise=base_noise,
            first_frame=self._first_frame,
        )
        if job.on_step is None:
            return [self._loop.enqueue(n)]
        latents = self._loop.run_with_callback(n, schedule.timesteps, job.on_step)
        self._device.upload(self._loop.final_latents, final_adain(latents, config.preset, config.adain))
        return []

    def _uploaded(self, target: DeviceArray, values: Array | None) -> DeviceArray | None:
        if values is None:
            return None
        self._device.upload(target, np.asarray(values, np.float32))
        return target

    def _enqueue_decoding(self) -> None:
        """The final latents to frames as bytes and their histograms, `decode_batch` frames at a time; where
        that does not divide their number, the last frames are decoded twice."""
        launch, decoder = self._device.launch, self._decoder
        scaling = self._manifest.scaling_factors[LAMP.vae]
        kernels.decoder_input(launch, self._loop.final_latents, self._to_decode, scaling_factor=scaling)
        frames, batch = self._to_decode.shape[0], decoder.arrays["latents"].shape[0]
        if batch > frames:
            raise EngineError(f"the VAE decoder takes {batch} frames at once, the video has {frames}.")
        for start in range(0, frames, batch):
            start = min(start, frames - batch)
            self._device.copy(decoder.arrays["latents"], self._to_decode.rows(start, start + batch))
            decoder.enqueue()
            kernels.count_decoded(launch, self._histograms, decoder.arrays["image"], start)

    def _require_finite(self, job: VideoJob) -> None:
        if int(self._loop.progress["first_overflow"][0]) == 0:
            require_finite_array(self._device, self._text.arrays["last_hidden_state"], "the text encoder")
            require_finite_array(self._device, self._first_frame, "the VAE encoder")
        self._loop.require_finite(len(job.schedule), job.schedule.timesteps)
        require_no_nan(self._decoded, "the VAE decoder")
