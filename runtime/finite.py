# SPDX-License-Identifier: Apache-2.0
"""Values that are not finite: what is checked, on host and device alike, and the error.

Checked is all that the result is made of: text embeddings, the posterior of the first frame, the latents
after each step (which must fit the UNet's input type), decoded images. What is discarded is not, such as the
prediction for frame 0.
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
    """EngineError if `values`, the output of `where`, hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise not_finite(where, values.dtype)


def fits(latents: NDArray[np.float32], dtype: np.dtype[Any]) -> bool:
    """Whether latents can be the next input of a UNet of `dtype`: no NaN, no infinity, none beyond its range.

    The twin of what kernels/latent_step.cu reports as first_overflow.
    """
    return bool((np.abs(latents) <= np.float32(np.finfo(dtype).max)).all())


def step_of(unet: str, step: int, timesteps: NDArray[np.int64]) -> str:
    """A step of a loop in messages: "the LAMP UNet at step 3 of 50 (timestep 941)"."""
    return f"{unet} at step {step} of {len(timesteps)} (timestep {timesteps[step]})"


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
