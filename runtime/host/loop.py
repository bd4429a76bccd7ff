# SPDX-License-Identifier: Apache-2.0
"""The denoising loop with an engine on host arrays; the reference for cuda/loop.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.runtime.algorithm import latents as latent_ops
from lamp_trt.runtime.algorithm.latents import Latents, apply_row, final_adain
from lamp_trt.runtime.algorithm.noise import latent_noise
from lamp_trt.runtime.algorithm.preview import colour_table, preview_frames
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.finite import fits, not_finite, step_of
from lamp_trt.runtime.host.conditioning import conditions_by_step
from lamp_trt.runtime.ops import Loop

Conditions = Mapping[str, NDArray[Any]]


def run_loop(
    unet: Engine,
    precompute: Sequence[Engine],
    loop: Loop,
    latents: Latents,
    conditions: Conditions,
    control: Control,
    preview: PreviewEntry | None = None,
) -> Latents:
    """Run the loop from initial latents (1, c, f, h, w) or (1, c, h, w) to those to be decoded, float32.

    precompute  engines of the networks that compute UNet inputs, see conditioning.py
    conditions  the plain conditions by name, each [unconditional, conditional]
    preview     map of the latents' VAE, without which there are no previews
    Latents are float32 between steps and converted to the UNet's precision for its input. Raises EngineError,
    naming the step, if they exceed its range, and Cancelled before a step.
    """
    sample_dtype = np.dtype(unet.inputs[0].dtype)
    by_step = conditions_by_step(unet, precompute, conditions, loop.timesteps)
    control.report(loop.stage, 0, len(loop))
    for step, row in enumerate(loop.rows):
        control.check()
        sample = np.repeat(latents, 2, axis=0).astype(sample_dtype)
        noise_pred = unet.run({"sample": sample, **next(by_step)})["noise_pred"]
        before = latents
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            latents = apply_row(latents, noise_pred, row)
        if not fits(latents, sample_dtype):
            raise not_finite(step_of(loop.unet, step, loop.timesteps), sample_dtype)
        if loop.on_step is not None:
            latents = loop.on_step(step, int(loop.timesteps[step]), latents)
        control.report(loop.stage, step + 1, len(loop))
        if control.previews and preview and loop.clean is not None and control.previews.due():
            frames = preview_frames(before, noise_pred, row, loop.clean[step], colour_table(preview))
            control.previews.show(loop.stage, step, frames)
    return final_adain(latents) if loop.final_adain else latents


def initial_latents(loop: Loop, shape: tuple[int, ...], first_frame: Latents | None = None) -> Latents:
    """Input of the first step: the loop's noise of `shape`, mixed as configured, with `first_frame`
    (1, c, 1, h, w) as frame 0. NumPy equivalent of kernels/noise.cu begin_loop."""
    noise = latent_noise(loop.seed, loop.purpose, shape) if loop.noise is None else loop.noise
    if first_frame is None:
        return noise.astype(np.float32)
    if loop.base_weight == 0:
        return latent_ops.with_first_frame(noise, first_frame)
    base = loop.base_noise
    if base is None and loop.base_purpose is not None:
        base = latent_noise(loop.seed, loop.base_purpose, first_frame.shape)
    return latent_ops.mix_noise(noise, first_frame, base)
