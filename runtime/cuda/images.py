# SPDX-License-Identifier: Apache-2.0
"""The first frame from text on one device: from token ids to the decoded image, with no host round trip.

The reference is HostImageStages in runtime/host/stages.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, SDXL
from lamp_trt.engine.precompute import networks_beside
from lamp_trt.runtime.algorithm.latents import step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.cuda.common import (
    Conditions,
    Marks,
    guided_ids,
    require_finite_array,
    require_no_nan,
)
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.loop import DeviceLoop, Shown, watch
from lamp_trt.runtime.cuda.memory import memory_need, require_memory
from lamp_trt.runtime.host.stages import time_ids
from lamp_trt.runtime.kernels import frames as kernels
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.stages import ImageJob, MadeImage, TokenIds

Array = NDArray[Any]


class CudaImageStages:
    """SDXL on the device. `engines` may be shared with the video's stages. EngineError if memory is short."""

    def __init__(self, manifest: Manifest, engines: EngineSet) -> None:
        device = engines.device
        networks = (*FIRST_FRAME_NETWORKS, *networks_beside(manifest, SDXL.unet))
        require_memory(memory_need(manifest, networks), device.free_bytes(), "making first frames")
        self._manifest, self._device, self._engines = manifest, device, engines
        self._encoders = (engines.add("sdxl_text_encoder"), engines.add("sdxl_text_encoder_2"))
        first, second = (encoder.arrays["penultimate_hidden_state"] for encoder in self._encoders)
        width = first.shape[-1] + second.shape[-1]
        self._hidden_states = device.empty((*first.shape[:-1], width), first.dtype)
        self._text_embeds = self._encoders[1].arrays["text_embeds"]
        ids = time_ids(manifest.sizes)
        self._time_ids = device.empty(ids.shape, ids.dtype)
        device.upload(self._time_ids, ids)
        given = {
            "encoder_hidden_states": self._hidden_states,
            "text_embeds": self._text_embeds,
            "time_ids": self._time_ids,
        }
        self._conditions = Conditions(engines, manifest, SDXL.unet, given)
        self._decoder = engines.add("sdxl_vae_decoder")
        engines.share_scratch()
        unet, time = self._conditions.unet, self._conditions.time
        self.loop = DeviceLoop(device, unet, "first frame", lambda: engines.generation, time)
        self._noise = device.empty((1, *unet.arrays["sample"].shape[1:]), np.float32)
        self.decoded = self._decoder.arrays["image"]
        self.pixels = device.empty((*self.decoded.shape[2:], 3), np.uint8)
        small = (1, 3, *(size // 2 for size in self.decoded.shape[2:]))
        self._half_size = device.empty(small, self.decoded.dtype)

    def make_image(self, job: ImageJob) -> MadeImage:
        self._device.synchronize()
        marks = Marks(self._device)
        shown = self.enqueue(job, marks)
        self.enqueue_pixels()
        watch(self._device, marks.end("decode"), shown)
        return self.collect(job, marks)

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Array, Array]:
        self._enqueue_text(ids, zero_negative)
        return self._device.download(self._hidden_states), self._device.download(self._text_embeds)

    def enqueue(self, job: ImageJob, marks: Marks) -> list[Shown]:
        """Everything up to the decoded image, (1, 3, h, w) in `decoded`. Stages: text, denoise."""
        first, second = (guided_ids(ids, job.guidance_scale) for ids in job.ids)
        self._enqueue_text((first, second), job.zero_negative and job.guidance_scale > 1)
        self._conditions.enqueue_text()
        marks.end("text")
        schedule, n = job.schedule, len(job.schedule)
        if job.noise is not None:
            self._device.upload(self._noise, job.noise.astype(np.float32))
        rows = step_table(schedule, guidance_scale=job.guidance_scale, adain="none", step_frame_0=True)
        self.loop.begin(
            schedule.timesteps,
            rows,
            prompt_changed=True,
            seed=job.seed,
            purpose=Purpose.SDXL_LATENTS,
            noise=self._noise if job.noise is not None else None,
        )
        shown: list[Shown] = []
        if job.on_step is None:
            shown.append(self.loop.enqueue(n))
        else:
            self.loop.run_with_callback(n, schedule.timesteps, job.on_step)
        marks.end("denoise")
        scaling = self._manifest.scaling_factors[SDXL.vae]
        latents, target = self.loop.final_latents, self._decoder.arrays["latents"]
        kernels.decoder_input(self._device.launch, latents, target, scaling_factor=scaling)
        self._decoder.enqueue()
        return shown

    def enqueue_pixels(self, half_size: DeviceArray | None = None) -> None:
        """`decoded` as bytes in `pixels`, and at half size as the SD encoder takes it, if somebody does."""
        progress, half_size = self.loop.arrays.progress, half_size or self._half_size
        kernels.first_frame(self._device.launch, self.decoded, self.pixels, half_size, progress)

    def collect(self, job: ImageJob, marks: Marks) -> MadeImage:
        """What was enqueued, after a wait. EngineError if it is not finite."""
        if int(self.loop.progress["first_overflow"][0]) == 0:
            require_finite_array(self._device, self._hidden_states, "a text encoder of SDXL")
        self.loop.require_finite(len(job.schedule), job.schedule.timesteps)
        require_no_nan(self.loop.progress, "SDXL's VAE decoder")
        latents = self._device.download(self.loop.final_latents)
        return MadeImage(self._device.download(self.pixels), latents, marks.seconds())

    def _enqueue_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> None:
        first = 0
        for encoder, some_ids in zip(self._encoders, ids, strict=True):
            self._device.upload(encoder.arrays["input_ids"], some_ids)
            encoder.enqueue()
            states = encoder.arrays["penultimate_hidden_state"]
            self._device.copy_columns(self._hidden_states, states, first)
            first += states.shape[-1]
        if zero_negative:
            self._device.zero(self._hidden_states[0])
            self._device.zero(self._text_embeds[0])
