# SPDX-License-Identifier: Apache-2.0
"""Command-line options for the fields of settings records, and their values from parsed arguments."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lamp_trt.engine.bundle.paths import possible_path
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import Setting


def file_path(text: str) -> Path:
    """argparse type of an argument that names an existing or new file or folder."""
    try:
        return Path(possible_path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_settings(
    parser: argparse.ArgumentParser, settings: Iterable[Setting], *, suppress: bool = False
) -> None:
    """Add an option for each setting. suppress: options that are not given are absent from the namespace, so
    that their values can come from elsewhere."""
    for each in settings:
        shown = "" if each.default is None or not suppress else f"; default: {each.default}"
        options: dict[str, Any] = {"choices": each.choices} if each.choices else {"metavar": each.metavar}
        parser.add_argument(
            flag(each.name),
            dest=each.name,
            type=_type(each),
            default=argparse.SUPPRESS if suppress else each.default,
            help=each.help + shown,
            **options,
        )


def flag(name: str) -> str:
    """The option of a setting: --first-frame-steps for first_frame_num_inference_steps."""
    return "--" + name.replace("num_inference_steps", "steps").replace("_", "-")


def given(args: argparse.Namespace, settings: Iterable[Setting]) -> dict[str, Any]:
    """The settings that `args` holds, by name."""
    return {each.name: getattr(args, each.name) for each in settings if hasattr(args, each.name)}


def _type(setting: Setting) -> Any:
    kind: Callable[[str], Any] = file_path if setting.kind is Path else setting.kind
    if setting.metavar == "PROMPT":
        kind = without_marks
    if setting.check is None:
        return kind

    def convert(text: str) -> Any:
        try:
            return setting.checked(kind(text))
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
