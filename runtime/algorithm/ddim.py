# SPDX-License-Identifier: Apache-2.0
"""Tables of DDIM (Song et al. 2020) with the fixed settings of LAMP's pipeline.

Leading spacing, steps_offset 1, no clipping of x0, eta 0, independent of the folder's scheduler: the official
pipeline forces them on SD v1.4's PNDM configuration, this runtime also on SDXL's Euler configuration. The
last step goes to alphas_cumprod[0] unless the configuration has set_alpha_to_one. Source: docs/algorithm.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import BETA_SCHEDULES
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import finite_number, whole_number

STEPS_OFFSET = 1

SD_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
}
"""The settings of SD v1.4 and SDXL; defaults for keys that a scheduler_config.json lacks."""


@dataclass(frozen=True, eq=False)
class DDIMSchedule:
    """Timesteps and coefficients of a denoising loop.

    timesteps            int64 (n,), descending; step i goes from timesteps[i] to the previous timestep
    alpha_t, alpha_prev  float32 (n,), alphas_cumprod at the start and end of each step
    """

    timesteps: NDArray[np.int64]
    alpha_t: NDArray[np.float32]
    alpha_prev: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def inversion(self) -> "DDIMSchedule":
        """The steps of DDIM inversion, from clean to noisy: `timesteps` ascend, and the network gets the one
        that a step leads to. Source: docs/algorithm.md, section 8."""
        return DDIMSchedule(self.timesteps[::-1], self.alpha_prev[::-1], self.alpha_t[::-1])


def alphas_cumprod(scheduler_config: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
    """Cumulative product of 1 - beta, float32 (num_train_timesteps,).

    Betas are float32; the product is accumulated in float64 and each entry rounded, as torch does on the CPU.
    Raises InputError for a beta schedule or prediction type that LAMP and SDXL do not use, and for betas out
    of range. (A build rejects more: export/checkpoints/scheduler.py.)
    """
    config = {**SD_SCHEDULER, **(scheduler_config or {})}
    if config["prediction_type"] != "epsilon":
        raise InputError(
            f"the scheduler's prediction_type is {config['prediction_type']!r:.100}; "
            "only checkpoints that predict 'epsilon' are supported."
        )
    if config.get("trained_betas") is not None:
        raise InputError(
            "the scheduler has trained_betas; only computed betas (trained_betas null) are supported."
        )
    n = whole_number("the scheduler's num_train_timesteps", config["num_train_timesteps"], 1)
    start, end = (
        finite_number(f"the scheduler's {name}", config[name]) for name in ("beta_start", "beta_end")
    )
    if not 0 < start <= end < 1:
        raise InputError(f"the scheduler's betas go from {start} to {end}; expected 0 < start <= end < 1.")
    if config["beta_schedule"] == "linear":
        betas = _linspace(start, end, n)
    elif config["beta_schedule"] == "scaled_linear":
        betas = _linspace(start**0.5, end**0.5, n) ** 2
    else:
        raise InputError(
            f"the scheduler's beta_schedule is {config['beta_schedule']!r:.100}; "
            f"supported are {' and '.join(BETA_SCHEDULES)}."
        )
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def ddim_schedule(
    num_inference_steps: int, scheduler_config: Mapping[str, Any] | None = None
) -> DDIMSchedule:
    """The schedule of `num_inference_steps` steps. With ratio = num_train_timesteps // n:

        t_i = (n - 1 - i) * ratio + 1,   previous timestep t_i - ratio (before 0: alphas_cumprod[0])

    scheduler_config: the dict of a diffusers scheduler_config.json (PNDM, DDIM, Euler), None for SD v1.4's.
    Raises InputError if t_0 would lie outside the trained timesteps.
    """
    table = alphas_cumprod(scheduler_config)
    n = whole_number("num_inference_steps", num_inference_steps, 1, max(1, len(table) - STEPS_OFFSET))
    ratio = len(table) // n
    timesteps = np.arange(n - 1, -1, -1, dtype=np.int64) * ratio + STEPS_OFFSET
    set_alpha_to_one = bool({**SD_SCHEDULER, **(scheduler_config or {})}["set_alpha_to_one"])
    final = np.float32(1) if set_alpha_to_one else table[0]
    previous = timesteps - ratio
    return DDIMSchedule(timesteps, table[timesteps], np.where(previous >= 0, table[previous], final))


def step_coefficients(alpha_t: float, alpha_prev: float) -> tuple[float, float]:
    """Coefficients (cx, ce) of one DDIM step x_prev = cx * x + ce * noise_pred, in float64.

    They follow from

    x0 = (x - sqrt(1 - alpha_t) noise_pred) / sqrt(alpha_t)
    x_prev = sqrt(alpha_prev) x0 + sqrt(1 - alpha_prev) noise_pred      (DDIM, eq. 12, sigma = 0)
    """
    a, b = float(alpha_t), float(alpha_prev)
    return (b / a) ** 0.5, (1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5


def _linspace(start: float, end: float, n: int) -> NDArray[np.float32]:
    """float32 linspace computed from both ends towards the middle, each value rounded once, as torch does
    with fused multiply-add."""
    start32, end32 = np.float32(start), np.float32(end)
    step = np.float64((end32 - start32) / np.float32(max(n - 1, 1)))
    i = np.arange(n)
    return np.where(i < n // 2, start32 + step * i, end32 - step * (n - 1 - i)).astype(np.float32)
