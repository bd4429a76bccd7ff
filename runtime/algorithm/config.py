# SPDX-License-Identifier: Apache-2.0
"""LAMP's constants, each with its source, and the settings of one generation."""
# ruff: noqa: RUF009  (`setting` makes dataclass fields)

import json
import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, SupportsFloat, get_args, get_type_hints

from lamp_trt.engine.errors import InputError

Preset = Literal["official", "paper"]
"""`official`: the published code, step for step. `paper`: Algorithm 1 of the supplement to the letter."""

Adain = Literal["none", "first_frame", "schedule"]
"""The frame to which AdaIN matches others. `schedule`: early steps the second frame, later ones the first."""

Histogram = Literal["none", "official", "exact"]
"""Histogram matching of the decoded frames to frame 0, see histogram.py."""

Fit = Literal["stretch", "crop", "pad"]
"""Fitting of an image with another aspect ratio than the video's: `stretch` ignores the ratio, as the
official script does; `crop` cuts the longer side equally at both ends; `pad` adds black at both ends of the
shorter side, independent of the background of transparent pixels."""

Safety = Literal["refuse", "report", "off"]
"""Treatment of pictures that the safety checker flags: they are refused, or said and given out;
`off`: nothing is checked."""

SafetyCrops = Literal["all", "official"]
"""Parts of a frame that the safety checker sees: `official` is the centre square, `all` also both ends of the
longer side."""

NOISE_BASE_WEIGHT = 0.2
"""Weight of the noise shared by all frames; a frame's own has 1 - 0.2. Algorithm 1 and official code."""

ADAIN_EPS = 1e-8
"""Added to the variance before the square root. Official code."""

EARLY_STEPS: dict[str, int] = {"official": 31, "paper": 29}
"""Number of steps that match frames 2.. to frame 1, by preset; later ones match all to frame 0. An absolute
count, not scaled with the number of steps. Official code: `i > 30` ends them. Supplement, Algorithm 1:
`t > 20` with t = 49..0. The supplement's text says "the first 30 steps", selected by adain_switch_step=30."""

PRESET_HISTOGRAM: dict[str, Histogram] = {"official": "official", "paper": "exact"}
"""Histogram matching by preset. Only "official" includes the official code's float rounding."""

MAX_INFERENCE_STEPS = 999
"""Maximum number of steps. One more would start at timestep 1000, after the last trained one, see ddim.py."""

MAX_SEED = 2**64 - 1
"""The seed is Philox's 64-bit key."""


FPS = 8
"""The official script's frame rate."""

MAX_THREADS = 1024
"""Maximum number of CPU threads. No CPU has more, so a larger number is a mistake."""


def _scalar(value: Any) -> object:
    """The Python scalar of a scalar or 0-d array of NumPy, torch and others; any other `value` unchanged,
    including a tensor without data (on torch's meta device)."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    try:
        scalar: object = value.item()
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return value
    return scalar


def json_text(settings: Mapping[str, Any]) -> str:
    """Settings as JSON; scalars of other libraries become Python's. Raises InputError for other types."""

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
    """The beginning of `value` for a message. Python does not print integers of more than 4300 digits."""
    try:
        return f"{value!r:.100}"
    except ValueError:
        return f"a {type(value).__name__} of thousands of digits"


def one_of(name: str, value: object, choices: object) -> Any:
    """`value` as an argument of the Literal type `choices`. Raises InputError if it is none of them."""
    return choice_of(name, value, get_args(choices))


def choice_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """`value` as the equal str in `allowed`. Raises InputError if it is none of them."""
    scalar = _scalar(value)
    if not isinstance(scalar, str) or scalar not in allowed:
        raise InputError(f"{name} is {_shown(value)}; choose one of {', '.join(allowed)}.")
    return allowed[allowed.index(scalar)]


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as int. Raises InputError unless it is an integer in low..high (high None: no upper limit)."""
    expected = f"an integer from {low} to {high}" if high is not None else f"an integer >= {low}"
    scalar = _scalar(value)
    try:
        number = None if isinstance(scalar, bool) else operator.index(scalar)  # type: ignore[arg-type]
    except (NotImplementedError, RuntimeError, TypeError):  # not an integer; a tensor without data
        number = None
    has_axes = getattr(scalar, "shape", ()) != ()
    if number is None or has_axes or number < low or (high is not None and number > high):
        raise InputError(f"{name} is {_shown(value)}; expected {expected}.")
    return number


def finite_number(name: str, value: object) -> float:
    """`value` as float. Raises InputError unless it is a finite number; bool and str are rejected."""
    scalar = _scalar(value)
    number = math.nan
    if isinstance(scalar, SupportsFloat) and not _is_no_number(scalar):
        try:
            number = float(scalar)
        except (OverflowError, RuntimeError, TypeError, ValueError):
            # 10**400, a tensor without data, a signalling NaN
            number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {_shown(value)}; expected a finite number.")
    return number


def _is_no_number(scalar: object) -> bool:
    """Whether a value that `float` may accept is not a real number: bool, complex, an array with axes."""
    is_complex = isinstance(scalar, numbers.Complex) and not isinstance(scalar, numbers.Real)
    return isinstance(scalar, bool) or is_complex or getattr(scalar, "shape", ()) != ()


def truth_value(name: str, value: object) -> bool:
    """`value`, a bool of Python or an array library, as bool. Raises InputError for anything else."""
    scalar = _scalar(value)
    if not isinstance(scalar, bool):
        raise InputError(f"{name} is {_shown(value)}; expected True or False.")
    return scalar


def plain_text(name: str, value: object) -> str:
    """`value` as str, not a subclass. Raises InputError for anything else."""
    scalar = _scalar(value)
    if not isinstance(scalar, str):
        raise InputError(f"{name} is {_shown(value)}; expected a string.")
    return str.__str__(scalar)


def file_path(name: str, value: object) -> Path:
    """`value`, a str or os.PathLike, as Path. Raises InputError for anything else: bytes, open files."""
    scalar = _scalar(value)
    plain = os.fspath(scalar) if isinstance(scalar, str | os.PathLike) else None
    if not isinstance(plain, str) or not plain:
        raise InputError(f"{name} is {_shown(value)}; expected a path, as a string or a pathlib.Path.")
    return Path(str.__str__(plain))


def thread_count(num_threads: object) -> int | None:
    """A number of CPU threads as int, or None. Raises InputError otherwise."""
    return None if num_threads is None else whole_number("num_threads", num_threads, 1, MAX_THREADS)


def early_steps(preset: Preset, adain_switch_step: int | None) -> int:
    """Number of steps that match frames 2.. to frame 1: `adain_switch_step`, or the preset's for None."""
    if adain_switch_step is None:
        return EARLY_STEPS[one_of("preset", preset, Preset)]
    return whole_number("adain_switch_step", adain_switch_step, 0)


Kept = Literal["video", "first_frame", "no"]
"""The sidecars that store a setting: all, those of videos whose first frame SDXL made, or none ("no"), since
they store the image."""


def setting(default: Any, help: str, *, kept: Kept = "video", **more: Any) -> Any:
    """A dataclass field of a settings record, the only definition of a setting. more: see `Setting`."""
    return field(default=default, metadata={"help": help, "kept": kept, **more})


@dataclass(frozen=True)
class Setting:
    """One setting, read from a record's field. Command line, job files and sidecars are generated from these.

    kind          int, float, str, bool or Path
    optional      whether None is allowed
    choices       values of a Literal, otherwise empty
    low, high     limits of an integer
    metavar       of the command line
    kept          see Kept
    in_jobs       whether job files and the command line may set it
    check         replaces the check by kind: (name, value) → value as a Python object
    """

    name: str
    kind: type
    default: Any
    optional: bool
    choices: tuple[str, ...]
    help: str
    kept: Kept = "video"
    low: int = 0
    high: int | None = None
    metavar: str | None = None
    in_jobs: bool = True
    check: Callable[[str, Any], Any] | None = None

    def checked(self, value: object) -> Any:
        """`value` as a Python object that JSON can hold. Raises InputError if it is invalid."""
        if value is None and self.optional:
            return None
        if self.check is not None:
            return self.check(self.name, value)
        if self.choices:
            return choice_of(self.name, value, self.choices)
        if self.kind is int:
            return whole_number(self.name, value, self.low, self.high)
        return _PLAIN[self.kind](self.name, value)


_PLAIN: dict[type, Callable[[str, object], Any]] = {
    float: finite_number,
    bool: truth_value,
    str: plain_text,
    Path: file_path,
}


@cache
def settings_of(record: type) -> tuple[Setting, ...]:
    """The settings of a dataclass: its fields made by `setting`; other fields are skipped."""
    hints = get_type_hints(record)
    return tuple(_setting(each, hints[each.name]) for each in fields(record) if "help" in each.metadata)


def _setting(each: "Field[Any]", hint: Any) -> Setting:
    literal = get_args(hint) and NoneType not in get_args(hint)
    kinds = [hint] if literal or not get_args(hint) else [k for k in get_args(hint) if k is not NoneType]
    choices = get_args(kinds[0])
    kind = str if choices else kinds[0]
    return Setting(each.name, kind, each.default, kinds[0] is not hint, choices, **each.metadata)


def _colour(name: str, value: Any) -> str:
    """`value` as str. Raises InputError unless background_rgb accepts it."""
    from lamp_trt.runtime.media.image_colour import background_rgb  # imports NumPy, slow for the parser

    background_rgb(value)
    return plain_text(name, value)


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of one video, as `LampPipeline.__call__` takes them.

    Raises InputError for a value out of range. Scalars of NumPy and other libraries become Python's.

    guidance_scale     <= 1 turns guidance off: only the conditional prediction is used
    adain_switch_step  number of early steps, None for the preset's
    histogram          None for the preset's
    mix_noise          False for editing, where the noise is DDIM-inverted latents, used as given
    """

    fit: Fit = setting("stretch", "fitting of an image with another aspect ratio", kept="no")
    background: str = setting(
        "white",
        "colour behind transparent pixels of an image file: #rrggbb or a CSS name",
        kept="no",
        metavar="COLOUR",
        check=_colour,
    )
    first_frame_prompt: str | None = setting(
        None, "SDXL's prompt; default: the video's prompt", kept="first_frame", metavar="PROMPT"
    )
    first_frame_num_inference_steps: int = setting(
        50, "steps of SDXL's loop", kept="first_frame", low=1, high=MAX_INFERENCE_STEPS, metavar="STEPS"
    )
    first_frame_guidance_scale: float = setting(
        5.0, "guidance of SDXL's loop", kept="first_frame", metavar="SCALE"
    )
    negative_prompt: str | None = setting(None, "for the first frame and the video", metavar="PROMPT")
    seed: int = setting(0, "seed of all noise, 0 to 2^64-1", high=MAX_SEED)
    num_inference_steps: int = setting(
        50, "steps of the video's loop", low=1, high=MAX_INFERENCE_STEPS, metavar="STEPS"
    )
    guidance_scale: float = setting(12.5, "1 or less turns guidance off", metavar="SCALE")
    preset: Preset = setting("official", "the published code, or Algorithm 1 to the letter")
    adain: Adain = setting("schedule", "frames to which a step matches the others")
    adain_switch_step: int | None = setting(
        None, "number of early steps; default: the preset's", metavar="STEPS"
    )
    histogram: Histogram | None = setting(None, "histogram matching to frame 0; default: the preset's")
    safety: Safety | None = setting(
        None, "flagged pictures; default: refuse, if the bundle has a safety checker"
    )
    safety_crops: SafetyCrops = setting(
        "all", "parts of a frame that are checked; official is the centre alone"
    )
    mix_noise: bool = setting(True, "whether frames share noise; False for editing", in_jobs=False)

    def __post_init__(self) -> None:
        vars(self).update(checked(self))

    @property
    def histogram_mode(self) -> Histogram:
        """The effective histogram matching: `histogram`, or the preset's."""
        return self.histogram if self.histogram is not None else PRESET_HISTOGRAM[self.preset]

    def kept(self, kept: Kept) -> dict[str, Any]:
        """The settings with this value of `Setting.kept`, by name."""
        return {each.name: getattr(self, each.name) for each in SETTINGS if each.kept == kept}


def checked(record: Any) -> dict[str, Any]:
    """The checked settings of a record by name. Raises InputError for the first invalid one."""
    kind: type = type(record)
    return {each.name: each.checked(getattr(record, each.name)) for each in settings_of(kind)}


SETTINGS = settings_of(GenerationConfig)
"""The settings of one video."""
