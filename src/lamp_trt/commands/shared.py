# SPDX-License-Identifier: Apache-2.0
"""Arguments and output shared by several commands."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamp_trt.commands.flags import add_settings, given
from lamp_trt.commands.flags import file_path as file_path
from lamp_trt.engine.backends.registry import names
from lamp_trt.engine.bundle.paths import possible_path
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import settings_of

if TYPE_CHECKING:
    from lamp_trt.export.planned import BuildReport
    from lamp_trt.runtime.requests import Placement

log = logging.getLogger("lamp_trt")


class HelpFormatter(argparse.HelpFormatter):
    """Help formatter that appends an option's default, unless its text states one or there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        stated = "default" in text or action.default is argparse.SUPPRESS
        unset = action.default is None or action.default is False or action.default in ([], (), "")
        return text if stated or unset else f"{text} (default: %(default)s)"


def require_parent(out: Path) -> None:
    """InputError unless the folder of the file `--out` exists."""
    if not out.parent.is_dir():
        raise InputError(f"--out is {out}, but {out.parent} is not a folder; create it first.")


def add_placement(parser: argparse.ArgumentParser, *, residence: bool = False) -> None:
    """Add the options for the bundle and the placement of its networks. residence: also
    --resident-motions."""
    parser.add_argument("--bundle", type=file_path, required=True, help="the bundle's folder", metavar="DIR")
    parser.add_argument(
        "--expect-bundle", help="refuse any bundle but this, as `inspect` shows it", metavar="SHA256"
    )
    add_engines(parser, residence=residence)


def add_engines(parser: argparse.ArgumentParser, *, residence: bool = False) -> None:
    """Add the options for the placement of networks."""
    from lamp_trt.runtime.requests import Placement

    settings = {each.name: each for each in settings_of(Placement)}
    settings["backend"] = replace(settings["backend"], help=one_of(names()))
    if not residence:
        del settings["resident_motions"]
    add_settings(parser, settings.values())


def add_verify_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify-files",
        action="store_true",
        help="first read and check every byte, also of files that have not changed since they were checked",
    )


def placement(args: argparse.Namespace) -> "Placement":
    """The Placement from the options of `add_engines`. InputError for invalid values."""
    from lamp_trt.runtime.requests import Placement

    return Placement(**given(args, settings_of(Placement)))


def add_checkpoints(parser: argparse.ArgumentParser, motion_help: str) -> None:
    """Add the options for the checkpoints that the bundle was built from."""
    parser.add_argument("--sd", type=file_path, help="the folder that --sd of the build named", metavar="DIR")
    parser.add_argument("--sdxl", type=file_path, help="the folder that --sdxl named", metavar="DIR")
    parser.add_argument("--motion", action="append", default=[], help=motion_help, metavar="NAME=DIR")


def log_timings(timings: Mapping[str, float]) -> None:
    log.info("%s", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in timings.items()))


def named_folders(items: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for item in items:
        name, separator, folder = item.partition("=")
        if not (name and separator and folder):
            raise InputError(f"--motion is {item!r}; expected NAME=DIR, like rain=lamp/rain.")
        if name in folders:
            raise InputError(f"--motion names {name!r} twice; give each motion a name of its own.")
        folders[name] = Path(possible_path(folder))
    return folders


def print_report(report: "BuildReport", as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(report), default=str))
        return
    for file in report.files:
        took = "kept" if file.seconds is None else f"{file.seconds:.1f} s"
        print(f"{file.path:40} {mb(file.size_bytes):>12}  {took}")
    total = sum(file.size_bytes for file in report.files)
    print(f"{report.path}: {mb(total)} in {len(report.files)} files, {report.seconds:.1f} s")


def one_of(words: Sequence[str], last: str = "or") -> str:
    """Like "a, b or c"."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
