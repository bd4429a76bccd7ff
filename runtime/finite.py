# SPDX-License-Identifier: Apache-2.0
"""Checks for non-finite values, and their error, the same on host and device.

Everything that the result depends on is checked: text embeddings, the posterior of the first frame, the
latents after each step (which must be in the range of the UNet's input type), decoded images. Discarded
values, such as the prediction for frame 0, are not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError

TEXT_ENCODER = "the text encoder"
VAE_ENCODER = "the VAE encoder"
VAE_DECODER = "the VAE decoder"
LAMP_UNET = "the LAMP UNet"
SDXL_TEXT_ENCODERS = ("SDXL's first text encoder", "SDXL's second text encoder")
SDXL_UNET = "SDXL's UNet"
SDXL_DECODER = "SDXL's VAE decoder"


def require_finite(values: NDArray[Any], where: str) -> None:
    """Raise EngineError if `values`, the output of `where`, contain NaN or infinity."""
    if not np.isfinite(values).all():
        raise not_finite(where, values.dtype)


def fits(latents: NDArray[np.float32], dtype: np.dtype[Any]) -> bool:
    """Whether latents are valid input of a UNet of `dtype`: no NaN, no infinity, none beyond its range.

    NumPy equivalent of first_overflow in kernels/latent_step.cu.
    """
    return bool((np.abs(latents) <= np.float32(np.finfo(dtype).max)).all())


def step_of(unet: str, step: int, timesteps: NDArray[np.int64]) -> str:
    """Name of a loop's step in messages: "the LAMP UNet at step 3 of 50 (timestep 941)"."""
    return f"{unet} at step {step} of {len(timesteps)} (timestep {timesteps[step]})"


def not_finite(where: str, dtype: np.dtype[Any]) -> EngineError:
    """The error for an output of `where`, computed in `dtype`, that contains NaN or infinity."""
    remedy = "its weights or inputs are damaged: try `lamp-trt inspect --verify-files`"
    if dtype == np.float16:
        remedy = (
            "the range of fp16 was exceeded: build the bundle with --precision bf16 (for TensorRT and "
            "AOTInductor) or --precision fp32"
        )
    return EngineError(f"{where} returned values that are not finite; {remedy}.")
