# SPDX-License-Identifier: Apache-2.0
"""The denoising loop over an engine that runs on host arrays: the plain one, reference of faster loops."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.progress import progress
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule
from lamp_trt.runtime.algorithm.latents import ddim_step, denoise_step, final_adain
from lamp_trt.runtime.host.conditioning import conditions_by_step

Latents = NDArray[np.float32]
StepCallback = Callable[[int, int, Latents], Latents]
"""(step index from 0, timestep, latents after the step's AdaIN) → the latents to go on with."""


def denoise_video(
    unet: Engine,
    latents: Latents,
    text_embeddings: NDArray[Any],
    schedule: DDIMSchedule,
    config: GenerationConfig,
    on_step: StepCallback | None = None,
    beside: Sequence[Engine] = (),
) -> Latents:
    """Algorithm 1's loop: from initial latents (1, 4, f, h, w) to those that are decoded, float32.

    text_embeddings  (2, tokens, width): [unconditional, conditional]; with guidance_scale <= 1 the
                     conditional text is run in both halves
    beside           engines of the networks beside the UNet, see conditioning.py
    Latents stay float32 between steps; the UNet sees them in its own precision. Raises EngineError, naming
    the step, if the UNet returns values that are not finite.
    """
    sample_dtype = np.dtype(unet.inputs[0].dtype)
    text = text_embeddings if config.guidance_scale > 1 else text_embeddings[[1, 1]]
    conditions = conditions_by_step(unet, beside, {"encoder_hidden_states": text}, schedule.timesteps)
    steps = progress(enumerate(schedule.timesteps), "denoising", total=len(schedule), unit=" steps")
    for step, timestep in steps:
        sample = np.repeat(latents, 2, axis=0).astype(sample_dtype)
        noise_pred = unet.run({"sample": sample, **next(conditions)})["noise_pred"]
        require_finite(noise_pred, f"the LAMP UNet at step {step} of {len(schedule)} (timestep {timestep})")
        latents = denoise_step(
            latents,
            noise_pred,
            step,
            schedule,
            guidance_scale=config.guidance_scale,
            preset=config.preset,
            adain=config.adain,
            adain_switch_step=config.adain_switch_step,
        )
        if on_step is not None:
            latents = on_step(step, int(timestep), latents)
    return final_adain(latents, config.preset, config.adain)


def denoise_image(
    unet: Engine,
    latents: Latents,
    conditions: Mapping[str, NDArray[Any]],
    schedule: DDIMSchedule,
    guidance_scale: float,
    on_step: StepCallback | None = None,
    beside: Sequence[Engine] = (),
) -> Latents:
    """SDXL's loop: from noise (1, 4, h, w) to the latents of an image, float32.

    conditions  encoder_hidden_states, text_embeds and time_ids, each [unconditional, conditional]; with
                guidance_scale <= 1 the conditional ones are run in both halves
    beside      engines of the networks beside the UNet, see conditioning.py
    Raises EngineError as `denoise_video` does.
    """
    sample_dtype = np.dtype(unet.inputs[0].dtype)
    if guidance_scale <= 1:
        conditions = {name: array[[1, 1]] for name, array in conditions.items()}
    by_step = conditions_by_step(unet, beside, conditions, schedule.timesteps)
    steps = progress(enumerate(schedule.timesteps), "first frame", total=len(schedule), unit=" steps")
    for step, timestep in steps:
        sample = np.repeat(latents, 2, axis=0).astype(sample_dtype)
        noise_pred = unet.run({"sample": sample, **next(by_step)})["noise_pred"]
        require_finite(noise_pred, f"SDXL's UNet at step {step} of {len(schedule)} (timestep {timestep})")
        ends = schedule.alpha_t[step], schedule.alpha_prev[step]
        latents = ddim_step(latents, noise_pred, *ends, guidance_scale)
        if on_step is not None:
            latents = on_step(step, int(timestep), latents)
    return latents


def require_finite(values: NDArray[Any], where: str) -> None:
    """Raise EngineError if `values`, the output of `where`, hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise not_finite(where, values.dtype)


def not_finite(where: str, dtype: np.dtype[Any]) -> EngineError:
    """The error for an output of `where`, computed in `dtype`, that holds NaN or infinity."""
    remedy = "the weights, or what it was given, are damaged: try `lamp-trt inspect --verify-files`"
    if dtype == np.float16:
        remedy = (
            "the range of fp16 was exceeded: build the bundle with --precision bf16 (for TensorRT and "
            "AOTInductor) or --precision fp32"
        )
    return EngineError(
        f"{where} returned values that are not finite, so nothing can be made of them; {remedy}."
    )
