# SPDX-License-Identifier: Apache-2.0
"""SDXL's operations on a device, all enqueued; the reference is HostImageOps in host/ops.py."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, SDXL
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.cuda.conditions import Conditions
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.loop import DeviceLoop
from lamp_trt.runtime.cuda.memory import memory_need, require_memory
from lamp_trt.runtime.cuda.safety import CudaSafetyNetwork
from lamp_trt.runtime.cuda.work import DeviceClock, DeviceWork
from lamp_trt.runtime.finite import SDXL_DECODER, SDXL_TEXT_ENCODERS, not_finite
from lamp_trt.runtime.kernels import frames as kernels
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.ops import Array, Loop, TokenIds, time_ids

log = logging.getLogger("lamp_trt")


class CudaOps:
    """Operations common to both families.

    Raises EngineError if the free GPU memory does not suffice for `networks`. what: the purpose, for errors.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: EngineSet,
        work: DeviceWork,
        networks: tuple[str, ...],
        what: str,
        safety: CudaSafetyNetwork | None = None,
    ) -> None:
        require_memory(memory_need(manifest, networks), engines.device.free_bytes(), what)
        self._manifest, self._engines, self._work = manifest, engines, work
        self._device = engines.device
        self._safety = safety or CudaSafetyNetwork(manifest, engines)

    def working(self, control: Control) -> AbstractContextManager[DeviceClock]:
        return self._work.working(control)

    def clock(self) -> DeviceClock:
        return DeviceClock(self._device)

    def finish(self, control: Control) -> None:
        self._work.finish(control)

    def safety_cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        return self._safety.cosines(pixel_values)

    def fetch(self, value: DeviceArray) -> Array:
        return self._device.download(value)

    def close(self) -> None:
        try:
            self._engines.close()
        except EngineError as error:  # the device was lost, and its memory with it
            log.warning("%s", error)
        self._device.close()

    def _uploaded(self, target: DeviceArray, values: Array | None) -> DeviceArray | None:
        """Upload `values` into `target`; returns it, or None without values."""
        if values is None:
            return None
        self._device.upload(target, np.asarray(values, np.float32))
        return target

    def _require_finite_image(self, progress: NDArray[Any], image: DeviceArray, where: str) -> None:
        """Make `finish` raise EngineError if a kernel reports in `progress` that a decoded image is not
        finite."""

        def check() -> None:
            if int(progress["image_not_finite"][0]):
                raise not_finite(where, image.dtype)

        self._work.flag(check)


class CudaImageOps(CudaOps):
    """SDXL's operations, see ops.ImageOps. `engines`, `work` and `safety` may be shared with CudaVideoOps."""

    def __init__(
        self,
        manifest: Manifest,
        engines: EngineSet,
        work: DeviceWork | None = None,
        safety: CudaSafetyNetwork | None = None,
    ) -> None:
        networks = (*FIRST_FRAME_NETWORKS, *precompute_networks(manifest, SDXL.unet))
        super().__init__(
            manifest, engines, work or DeviceWork(engines.device), networks, "making first frames", safety
        )
        device = self._device
        self._encoders = (engines.add("sdxl_text_encoder"), engines.add("sdxl_text_encoder_2"))
        first, second = (encoder.arrays["penultimate_hidden_state"] for encoder in self._encoders)
        width = first.shape[-1] + second.shape[-1]
        self._hidden_states = device.empty((*first.shape[:-1], width), first.dtype)
        self._text_embeds = self._encoders[1].arrays["text_embeds"]
        self._conditions = Conditions(engines, manifest, SDXL.unet, self._given(time_ids(manifest.sizes)))
        self._decoder = engines.add("sdxl_vae_decoder")
        engines.share_scratch()
        unet, time = self._conditions.unet, self._conditions.time
        preview = manifest.previews.get(SDXL.vae)
        self._loop = DeviceLoop(device, unet, lambda: engines.generation, time, preview)
        self._noise = device.empty((1, *unet.arrays["sample"].shape[1:]), np.float32)
        decoded = self._decoder.arrays["image"]
        self._pixels = device.empty((*decoded.shape[2:], 3), np.uint8)
        small = (1, 3, *(size // 2 for size in decoded.shape[2:]))
        self._half_size = device.empty(small, decoded.dtype)

    def encode_text(
        self, ids: tuple[TokenIds, TokenIds], zero_negative: bool
    ) -> tuple[DeviceArray, DeviceArray]:
        column = 0
        for encoder, some_ids in zip(self._encoders, ids, strict=True):
            self._device.upload(encoder.arrays["input_ids"], some_ids)
            encoder.enqueue()
            states = encoder.arrays["penultimate_hidden_state"]
            self._device.copy_columns(self._hidden_states, states, column)
            column += states.shape[-1]
        if zero_negative:
            self._device.zero(self._hidden_states[0])
            self._device.zero(self._text_embeds[0])
        for encoder, where in zip(self._encoders, SDXL_TEXT_ENCODERS, strict=True):
            states = encoder.arrays["penultimate_hidden_state"]
            self._work.cause(states[1] if zero_negative else states, where)
        self._work.cause(self._text_embeds, SDXL_TEXT_ENCODERS[1])
        self._conditions.enqueue_text()
        return self._hidden_states, self._text_embeds

    def denoise(self, loop: Loop, text: tuple[DeviceArray, DeviceArray], control: Control) -> DeviceArray:
        self._loop.begin(
            loop.timesteps,
            loop.rows,
            prompt_changed=True,
            seed=loop.seed,
            purpose=loop.purpose,
            noise=self._uploaded(self._noise, loop.noise),
        )
        self._loop.run(loop, self._work, control)
        return self._loop.final_latents

    def decode(self, latents: DeviceArray) -> DeviceArray:
        scaling = self._manifest.scaling_factors[SDXL.vae]
        kernels.decoder_input(
            self._device.launch, latents, self._decoder.arrays["latents"], scaling_factor=scaling
        )
        self._decoder.enqueue()
        return self._decoder.arrays["image"]

    def pixels(self, decoded: DeviceArray, half_size: DeviceArray | None = None) -> DeviceArray:
        """The decoded image as uint8 RGB. half_size: also receives the image at half size, as VAE encoder
        input."""
        kernels.first_frame(
            self._device.launch,
            decoded,
            self._pixels,
            half_size or self._half_size,
            self._loop.arrays.progress,
        )
        self._require_finite_image(self._loop.progress, decoded, SDXL_DECODER)
        return self._pixels

    def _given(self, ids: NDArray[np.float32]) -> Mapping[str, DeviceArray]:
        """The plain conditions by name, with time_ids uploaded."""
        on_device = self._device.empty(ids.shape, ids.dtype)
        self._device.upload(on_device, ids)
        return {
            "encoder_hidden_states": self._hidden_states,
            "text_embeds": self._text_embeds,
            "time_ids": on_device,
        }
