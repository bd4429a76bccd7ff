# SPDX-License-Identifier: Apache-2.0
"""LAMP's constants, each with its source, and the settings of one generation."""

import json
import math
import numbers
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat, get_args

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
t = 49..0. The supplement's running text says "the first 30 steps", which adain_switch_step=30 selects."""

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


def _scalar(value: Any) -> object:
    """Python's own object for a scalar or an array without axes of NumPy, torch and others; else `value`,
    also for one without a value (on torch's meta device)."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    try:
        scalar: object = value.item()
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return value
    return scalar


def json_text(settings: Mapping[str, Any]) -> str:
    """Settings as JSON, other libraries' scalars as Python's. InputError for what JSON cannot hold."""

    def plain(value: object) -> object:
        scalar = _scalar(value)
        if scalar is value:
            raise TypeError(f"{_shown(value)} is a {type(value).__name__}")
        return scalar

    try:
        return json.dumps(settings, indent=2, ensure_ascii=False, default=plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the settings cannot be saved as JSON: {error}. Change that value.") from error


def _shown(value: object) -> str:
    """The beginning of `value` in a message. Python writes no integer of more than 4300 digits."""
    try:
        return f"{value!r:.100}"
    except ValueError:
        return f"a {type(value).__name__} of thousands of digits"


def one_of(name: str, value: object, choices: object) -> Any:
    """The argument of the Literal type `choices` that `value` equals; InputError if none does."""
    allowed, scalar = get_args(choices), _scalar(value)
    if not isinstance(scalar, str) or scalar not in allowed:
        raise InputError(f"{name} is {_shown(value)}; choose one of {', '.join(allowed)}.")
    return allowed[allowed.index(scalar)]


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as int, or InputError if it is no integer in low..high (high None: no upper limit)."""
    expected = f"an integer from {low} to {high}" if high is not None else f"an integer >= {low}"
    scalar = _scalar(value)
    try:
        number = None if isinstance(scalar, bool) else operator.index(scalar)  # type: ignore[arg-type]
    except (NotImplementedError, RuntimeError, TypeError):  # no integer; a tensor without a value
        number = None
    has_axes = getattr(scalar, "shape", ()) != ()
    if number is None or has_axes or number < low or (high is not None and number > high):
        raise InputError(f"{name} is {_shown(value)}; expected {expected}.")
    return number


def finite_number(name: str, value: object) -> float:
    """`value` as float; InputError if it is no finite number, a truth value or a text."""
    scalar = _scalar(value)
    number = math.nan
    if isinstance(scalar, SupportsFloat) and not _is_no_number(scalar):
        try:
            number = float(scalar)
        except (OverflowError, RuntimeError, TypeError, ValueError):
            # 10**400, a tensor without a value, a signalling NaN
            number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {_shown(value)}; expected a finite number.")
    return number


def _is_no_number(scalar: object) -> bool:
    """Of what `float` takes: truth values, complex numbers and arrays with axes."""
    is_complex = isinstance(scalar, numbers.Complex) and not isinstance(scalar, numbers.Real)
    return isinstance(scalar, bool) or is_complex or getattr(scalar, "shape", ()) != ()


def truth_value(name: str, value: object) -> bool:
    """`value`, Python's or an array library's, as bool; InputError for anything else, numbers too."""
    scalar = _scalar(value)
    if not isinstance(scalar, bool):
        raise InputError(f"{name} is {_shown(value)}; expected True or False.")
    return scalar


def plain_text(name: str, value: object) -> str:
    """`value` as str itself, not a subclass; InputError if it is none."""
    scalar = _scalar(value)
    if not isinstance(scalar, str):
        raise InputError(f"{name} is {_shown(value)}; expected a string.")
    return str.__str__(scalar)


def file_path(name: str, value: object) -> Path:
    """A path given as str or os.PathLike; InputError for anything else: bytes, open files, numbers."""
    scalar = _scalar(value)
    plain = os.fspath(scalar) if isinstance(scalar, str | os.PathLike) else None
    if not isinstance(plain, str) or not plain:
        raise InputError(f"{name} is {_shown(value)}; expected a path, as a string or a pathlib.Path.")
    return Path(str.__str__(plain))


def thread_count(num_threads: object) -> int | None:
    """A number of CPU threads as int, None as it is; InputError otherwise."""
    return None if num_threads is None else whole_number("num_threads", num_threads, 1, MAX_THREADS)


def early_steps(preset: Preset, adain_switch_step: int | None) -> int:
    """How many steps match frames 2.. to frame 1: `adain_switch_step`, or the preset's number for None."""
    if adain_switch_step is None:
        return EARLY_STEPS[one_of("preset", preset, Preset)]
    return whole_number("adain_switch_step", adain_switch_step, 0)


def _plain_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a GenerationConfig, checked, as Python's own values, which JSON can hold."""
    plain: dict[str, Any] = {"seed": whole_number("seed", given["seed"], 0, MAX_SEED)}
    for name in ("num_inference_steps", "first_frame_num_inference_steps"):
        plain[name] = whole_number(name, given[name], 1, MAX_INFERENCE_STEPS)
    for name in ("guidance_scale", "first_frame_guidance_scale"):
        plain[name] = finite_number(name, given[name])
    plain |= {name: one_of(name, given[name], choices) for name, choices in _CHOICES.items()}
    switch, histogram = given["adain_switch_step"], given["histogram"]
    plain["adain_switch_step"] = None if switch is None else whole_number("adain_switch_step", switch, 0)
    plain["histogram"] = None if histogram is None else one_of("histogram", histogram, Histogram)
    plain["mix_noise"] = truth_value("mix_noise", given["mix_noise"])
    return plain


_CHOICES = {"preset": Preset, "adain": Adain}


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of one video, as `LampPipeline.__call__` takes them. Raises InputError for a value out of
    range. Scalars of NumPy and other libraries become Python's own values.

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
        vars(self).update(_plain_settings(vars(self)))

    @property
    def histogram_mode(self) -> Histogram:
        """The histogram matching that is done: `histogram`, or the preset's."""
        return self.histogram if self.histogram is not None else PRESET_HISTOGRAM[self.preset]
