# SPDX-License-Identifier: Apache-2.0
"""Callbacks as in diffusers, adapted to the signature that loops call."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.algorithm.noise import check_noise
from lamp_trt.runtime.ops import StepCallback

if TYPE_CHECKING:
    from lamp_trt.runtime.pipeline import LampPipeline

Array = NDArray[Any]
Callback = Callable[["LampPipeline", int, int, dict[str, Array]], Mapping[str, Array] | None]


def step_callback(pipeline: "LampPipeline", callback: Callback | None) -> StepCallback | None:
    """Adapt `callback` to the signature that the loop calls. Raises InputError if it is not a function."""
    if callback is None:
        return None
    if not callable(callback):
        raise InputError(f"callback_on_step_end is {callback!r:.100}; expected a function.")

    def on_step(step: int, timestep: int, latents: Latents) -> Latents:
        changed = callback(pipeline, step, timestep, {"latents": latents})
        if changed is None:
            return latents
        if not isinstance(changed, Mapping):
            raise InputError(f"callback_on_step_end returned {changed!r:.100}; expected a mapping or None.")
        if "latents" in changed:
            check_noise("the latents of callback_on_step_end", changed["latents"], latents.shape)
        return changed.get("latents", latents).astype(np.float32, copy=False)

    return on_step
