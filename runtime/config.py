# SPDX-License-Identifier: Apache-2.0
"""LAMP's constants, each with its source, and the settings of one generation."""

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Literal, get_args

from lamp_trt.engine.errors import InputError

Preset = Literal["official", "paper"]
"""`official`: the published code step for step. `paper`: Algorithm 1 of the supplement to the letter."""

Adain = Literal["none", "first_frame", "schedule"]
"""What a step matches the frames to. `schedule`: early steps to the second frame, later ones to the first."""

Histogram = Literal["none", "official", "exact"]
"""Histogram matching of the decoded frames to frame 0, see histogram.py."""

NOISE_BASE_WEIGHT = 0.2
"""Weight of the noise that all frames share; their own has 1 - 0.2. Algorithm 1 and official code."""

ADAIN_EPS = 1e-8
"""Added to the variance before the root. Official code."""

EARLY_STEPS: dict[str, int] = {"official": 31, "paper": 29}
"""Steps that match frames 2.. to frame 1, before the rest matches all to frame 0: an absolute count, not
rescaled to the number of steps. Official code: `i > 30` ends them. Supplement, Algorithm 1: `t > 20` with
t = 49..0. The supplement's text counts EARLY_STEPS_IN_TEXT."""

EARLY_STEPS_IN_TEXT = 30
"""Supplement, running text: "the first 30 steps"."""

PRESET_HISTOGRAM: dict[str, Histogram] = {"official": "official", "paper": "exact"}
"""The official code's float rounding is part of the official preset only; the paper states no rounding."""

MAX_INFERENCE_STEPS = 999
"""One step more would start at timestep 1000, past the last trained one (see ddim.py)."""

MAX_SEED = 2**64 - 1
"""The seed is Philox's 64-bit key."""


FPS = 8
"""The official script's frame rate."""

MAX_THREADS = 1024
"""More than any CPU has: what a larger number means is a mistake."""


def one_of(name: str, value: object, choices: object) -> None:
    """Raises InputError unless `value` is among the arguments of the Literal type `choices`."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} is {value!r:.100}; choose one of {', '.join(allowed)}.")


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as int, or InputError if it is no integer in low..high (high None: no upper limit)."""
    expected = f"an integer from {low} to {high}" if high is not None else f"an integer >= {low}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low or (high is not None and number > high):
        raise InputError(f"{name} is {value!r:.100}; expected {expected}.")
    return number


def finite_number(name: str, value: object) -> float:
    """`value`, Python's or NumPy's, as float; InputError if it is no finite number."""
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an integer beyond float's range
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{name} is {value!r:.100}; expected a finite number.")
    return number


def thread_count(num_threads: object) -> int | None:
    """A number of CPU threads as int, None as it is; InputError otherwise."""
    return None if num_threads is None else whole_number("num_threads", num_threads, 1, MAX_THREADS)


def early_steps(preset: Preset, adain_switch_step: int | None) -> int:
    """How many steps match frames 2.. to frame 1: `adain_switch_step`, or the preset's number for None."""
    one_of("preset", preset, Preset)
    if adain_switch_step is None:
        return EARLY_STEPS[preset]
    return whole_number("adain_switch_step", adain_switch_step, 0)


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of one video, as `LampPipeline.__call__` takes them. Raises InputError for a value out of
    range.

    guidance_scale <= 1 turns guidance off (the conditional prediction is used as it is).
    adain_switch_step: number of early steps, None for the preset's. histogram: None for the preset's.
    mix_noise: False for editing, where the noise is DDIM-inverted latents and used as given.
    """

    seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 12.5
    first_frame_num_inference_steps: int = 50
    first_frame_guidance_scale: float = 5.0
    preset: Preset = "official"
    adain: Adain = "schedule"
    adain_switch_step: int | None = None
    histogram: Histogram | None = None
    mix_noise: bool = True

    def __post_init__(self) -> None:
        plain: dict[str, object] = {"seed": whole_number("seed", self.seed, 0, MAX_SEED)}
        for name in ("num_inference_steps", "first_frame_num_inference_steps"):
            plain[name] = whole_number(name, getattr(self, name), 1, MAX_INFERENCE_STEPS)
        for name in ("guidance_scale", "first_frame_guidance_scale"):
            plain[name] = finite_number(name, getattr(self, name))
        for name, value in plain.items():  # NumPy's numbers become Python's, which JSON can hold
            object.__setattr__(self, name, value)
        one_of("adain", self.adain, Adain)
        early_steps(self.preset, self.adain_switch_step)
        if self.histogram is not None:
            one_of("histogram", self.histogram, Histogram)
        if not isinstance(self.mix_noise, bool):
            raise InputError(f"mix_noise is {self.mix_noise!r:.100}; expected True or False.")

    @property
    def early_steps(self) -> int:
        """Number of steps that match frames 2.. to frame 1."""
        return early_steps(self.preset, self.adain_switch_step)

    @property
    def histogram_mode(self) -> Histogram:
        """The histogram matching that is done: `histogram`, or the preset's."""
        return self.histogram if self.histogram is not None else PRESET_HISTOGRAM[self.preset]
