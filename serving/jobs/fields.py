# SPDX-License-Identifier: Apache-2.0
"""The fields of a request for a video, checked: from JSON values or the texts of a form."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import (
    FPS,
    SETTINGS,
    GenerationConfig,
    Setting,
    finite_number,
    settings_of,
)
from lamp_trt.runtime.requests import ClipRequest
from lamp_trt.serving.settings import ModelInfo

OPTIONS = {each.name: each for each in SETTINGS if each.in_jobs and not each.name.startswith("safety")}
"""Settings that a client may give. Those of the safety checker are the server's."""

COMMON = ("model", "prompt", "motion", "seconds", "size", "fps")
OWN = (*COMMON, "input_reference")

EDIT_OPTIONS = {name: each for name, each in OPTIONS.items() if each.kept != "first_frame"}
CLIP_OPTIONS = {each.name: each for each in settings_of(ClipRequest)}
EDIT_OWN = (*COMMON, "first_frame", "video")

_SURROGATE = re.compile("[\ud800-\udfff]")

_FIRST_FRAME_ONLY = tuple(name for name, each in OPTIONS.items() if each.kept == "first_frame")


class FieldError(InputError):
    """A field of a request that cannot be used. param: its name. status: of the reply."""

    def __init__(self, param: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True)
class VideoFields:
    """A checked request. options: only those that were given. Without the image, which is decoded apart.

    clip: of an edit, `start` and `every`, and `video`, the id of a finished job or None for an upload.
    """

    prompt: str
    motion: str
    fps: float
    options: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] | None = None


def parse_fields(given: Mapping[str, object], model: ModelInfo, *, has_frame: bool) -> VideoFields:
    """Check the fields of a request. Raises FieldError naming the first that is at fault.

    given: JSON values, or texts of a form, where an empty one counts as not given. has_frame: an image is
    there.
    """
    values = _known(given, (*OWN, *OPTIONS))
    fields = _parse(values, model, OPTIONS)
    _check_first_frame(fields.options, model, has_frame)
    return fields


def parse_edit_fields(given: Mapping[str, object], model: ModelInfo, *, has_video: bool) -> VideoFields:
    """Check the fields of a request for an edit, likewise. has_video: a video was uploaded."""
    values = _known(given, (*EDIT_OWN, *EDIT_OPTIONS, *CLIP_OPTIONS))
    fields = _parse(values, model, EDIT_OPTIONS)
    video = values.get("video")
    if not has_video and not (isinstance(video, str) and video):
        raise FieldError("video", "video is missing: send a file of the form, or the id of a finished video.")
    clip = {name: each.default for name, each in CLIP_OPTIONS.items()}
    clip |= {name: _option(CLIP_OPTIONS[name], values[name]) for name in CLIP_OPTIONS if name in values}
    return replace(fields, clip={**clip, "video": None if has_video else video})


def settings_shown() -> list[dict[str, Any]]:
    """The settings that a client may give, for pages that make inputs of them."""
    of_video = [(each, each.kept == "first_frame") for each in (*OPTIONS.values(), *CLIP_OPTIONS.values())]
    shown = [
        {
            "name": each.name,
            "type": each.kind.__name__,
            "default": each.default,
            "choices": [*each.choices],
            "low": each.low,
            "high": each.high,
            "help": each.help,
            "first_frame_only": first_frame_only,
        }
        for each, first_frame_only in of_video
    ]
    fps = {"name": "fps", "type": "float", "default": FPS, "choices": [], "low": 0, "high": None}
    return [*shown, {**fps, "help": "frames per second of the file", "first_frame_only": False}]


def _known(given: Mapping[str, object], known: tuple[str, ...]) -> Mapping[str, object]:
    """The fields that are not None. Raises FieldError for an unknown one."""
    for name in given:
        if name in ("safety", "safety_crops"):
            raise FieldError(name, f"{name} is set by the server, see /v1/models; leave it out.")
        if name not in known:
            raise FieldError(f"{name:.100}", f"unknown field {name!r:.100}; known: {', '.join(known)}.")
    return {name: value for name, value in given.items() if value is not None}


def _parse(values: Mapping[str, object], model: ModelInfo, allowed: Mapping[str, Setting]) -> VideoFields:
    prompt = _prompt(values.get("prompt"))
    fps = _fps(values.get("fps", FPS))
    _check_shape(values, model, fps)
    options = {name: _option(allowed[name], value) for name, value in values.items() if name in allowed}
    try:
        GenerationConfig(**options)
    except InputError as error:
        raise FieldError("preset", str(error)) from error
    motion = values.get("motion", model.default_motion)
    if motion not in model.motions:
        raise FieldError("motion", f"motion is {motion!r:.100}; choose one of {', '.join(model.motions)}.")
    return VideoFields(prompt, str(motion), fps, options)


def _prompt(value: object) -> str:
    from lamp_trt.runtime.media.tokenizer import prompt_text

    if value is None:
        raise FieldError("prompt", "prompt is missing; expected a string.")
    return _text("prompt", value, prompt_text)


def _text(name: str, value: object, check: Any) -> str:
    if isinstance(value, str) and _SURROGATE.search(value):
        raise FieldError(name, f"{name} holds lone surrogates, which are no text; send UTF-8.")
    try:
        text = check(without_marks(value) if isinstance(value, str) else value)
    except InputError as error:
        raise FieldError(name, f"{name}: {error}") from error
    if not text.strip():
        raise FieldError(name, f"{name} is empty; expected a text.")
    return str(text)


def _fps(value: object) -> float:
    from lamp_trt.runtime.media.video import frame_rate

    try:
        number = finite_number("fps", _number(value, float))
        frame_rate(number)
    except InputError as error:
        raise FieldError("fps", str(error)) from error
    return number


def _check_shape(values: Mapping[str, object], model: ModelInfo, fps: float) -> None:
    """Model, seconds and size can only be the bundle's."""
    if values.get("model", model.name) != model.name:
        raise FieldError("model", f"model is {values['model']!r:.100}; this server has {model.name!r}.")
    if values.get("size", model.size_text) != model.size_text:
        raise FieldError("size", f"size is {values['size']!r:.100}; the bundle's is {model.size_text!r}.")
    seconds = values.get("seconds")
    if seconds is not None:
        expected = model.seconds(fps)
        number = _number(seconds, float)
        if isinstance(number, bool) or not isinstance(number, int | float) or f"{number:.6g}" != expected:
            raise FieldError(
                "seconds",
                f"seconds is {seconds!r:.100}; a video of this bundle has {model.num_frames} frames, "
                f"at {fps:g} fps {expected!r}.",
            )


def _option(setting: Setting, value: object) -> Any:
    if setting.metavar == "PROMPT":
        from lamp_trt.runtime.media.tokenizer import prompt_text

        if value == "":
            return ""
        return _text(setting.name, value, prompt_text)
    if setting.kind in (int, float):
        value = _number(value, setting.kind)
    try:
        return setting.checked(value)
    except InputError as error:
        raise FieldError(setting.name, str(error)) from error


def _number(value: object, kind: type) -> object:
    """A form's text as a number, where it is one; any other value unchanged, to be refused by its check."""
    if not isinstance(value, str) or len(value) > 40:
        return value
    if re.fullmatch(r"[+-]?[0-9]+", value):
        return int(value) if kind is int else float(value)
    if kind is float and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value):
        return float(value)
    return value


def _check_first_frame(options: Mapping[str, Any], model: ModelInfo, has_frame: bool) -> None:
    if not has_frame and not model.makes_first_frames:
        raise FieldError(
            "input_reference",
            "input_reference is missing: this bundle cannot make first frames, send an image.",
        )
    if has_frame:
        for name in _FIRST_FRAME_ONLY:
            if name in options:
                raise FieldError(name, f"{name} is for first frames from text; input_reference is given.")
