# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt generate`: make videos from prompts and first frames."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lamp_trt.commands.bars import Bars
from lamp_trt.commands.flags import add_settings
from lamp_trt.commands.flags import given as given_settings
from lamp_trt.commands.shared import add_placement, add_verify_files, file_path, log_timings, placement
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import FPS, SETTINGS, Setting

if TYPE_CHECKING:
    from lamp_trt.runtime.jobs import Job

DESCRIPTION = "Make videos from prompts, and from first frames if given."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. Those of the video have no default here: a sidecar or the pipeline supplies it."""
    parser.add_argument("prompt", nargs="*", type=without_marks, help="one video for each", metavar="PROMPT")
    add_placement(parser, residence=True)
    add_verify_files(parser)
    parser.add_argument(
        "--motion",
        action="append",
        default=[],
        help="of the bundle; repeat it for a video of each; default: the bundle's default motion",
        metavar="NAME",
    )
    parser.add_argument(
        "--first-frame",
        type=file_path,
        default=argparse.SUPPRESS,
        help="an image file; default: SDXL makes one, if the bundle has it",
        metavar="IMAGE",
    )
    add_settings(parser, job_settings(), suppress=True)
    add_output(
        parser,
        "a .mp4, .gif or .webp file, or a folder: of PNGs, or of videos if there are several; "
        "default: named after the prompt, or the folder videos for several",
        "of videos that are not named by --out: without it, and of several",
    )
    add_preview(parser)
    parser.add_argument(
        "--prompts", type=file_path, help="a file: a prompt a line, or JSON lines", metavar="FILE"
    )
    parser.add_argument(
        "--from",
        type=file_path,
        dest="sidecar",
        help="repeat the video of this JSON sidecar file, with the options given here changed",
        metavar="FILE",
    )


def add_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preview",
        type=file_path,
        help="a .webp file that shows the video while it is made, rewritten every few seconds",
        metavar="FILE.webp",
    )


def add_output(parser: argparse.ArgumentParser, out_help: str, format_help: str) -> None:
    """Add the options of the videos' files."""
    parser.add_argument(
        "--save-first-frame",
        action="store_true",
        help="also save it as NAME.first_frame.png next to the video",
    )
    parser.add_argument("--fps", type=float, default=argparse.SUPPRESS, help=f"default: {FPS}")
    parser.add_argument("--out", type=file_path, help=out_help)
    parser.add_argument("--format", choices=["mp4", "gif", "webp", "png"], default="mp4", help=format_help)
    parser.add_argument(
        "--before-save",
        help="a function that gets each Video and returns the one to save; it refuses by raising",
        metavar="MODULE:FUNCTION",
    )


def run(args: argparse.Namespace) -> None:
    from lamp_trt.runtime.jobs import Job, job_from_sidecar, jobs_from_prompts_file

    if sum(map(bool, (args.prompt, args.prompts, args.sidecar))) != 1:
        raise InputError("give either prompts, or --prompts FILE, or --from SIDECAR.")
    given = {name: getattr(args, name) for name in ("first_frame", "fps") if hasattr(args, name)}
    options = given_settings(args, job_settings())
    defaults = Job("", options=options, **given)
    if args.sidecar:
        job = job_from_sidecar(args.sidecar)
        origin = {} if "first_frame" in given else job.origin
        jobs = [replace(job, options={**job.options, **options}, origin=origin, **given)]
        if args.motion:
            jobs = [replace(jobs[0], motion=None)]
    elif args.prompts:
        jobs = jobs_from_prompts_file(args.prompts, defaults)
    else:
        jobs = [replace(defaults, prompt=prompt) for prompt in args.prompt]
    if args.motion:
        jobs = [replace(job, motion=job.motion or motion) for motion in args.motion for job in jobs]
    make_videos(args, jobs)


def make_videos(args: argparse.Namespace, jobs: "Sequence[Job]") -> None:
    """Load the bundle, make the videos, and print a line for each. args: of `generate` or `edit`."""
    from lamp_trt.runtime.first_frame import save_png
    from lamp_trt.runtime.jobs import check_inputs_kept, first_frame_path, run_jobs, with_destinations
    from lamp_trt.runtime.load import load_pipeline

    jobs = with_destinations(jobs, args.out, "" if args.format == "png" else f".{args.format}")
    if args.save_first_frame:
        check_inputs_kept(jobs, [first_frame_path(job.out) for job in jobs if job.out is not None])
    before_save = _function(args.before_save) if args.before_save else None
    pipeline = load_pipeline(
        args.bundle, placement(args), expect_bundle=args.expect_bundle, verify_files=args.verify_files
    )
    with pipeline, Bars() as bars:
        for path, video in run_jobs(pipeline, jobs, before_save, progress=bars, preview=args.preview):
            log_timings(video.timings)
            settings = {name: value for name, value in video.settings.items() if name != "first_frame_png"}
            result = {"path": str(path), "timings": video.timings, "settings": settings}
            if args.save_first_frame:
                result["first_frame"] = str(save_png(video.first_frame, first_frame_path(path)))
            print(json.dumps(result) if args.json else path, flush=True)


def job_settings() -> list[Setting]:
    return [each for each in SETTINGS if each.in_jobs]


def _function(name: str) -> Callable[[Any], Any]:
    """The function that MODULE:FUNCTION names."""
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: a module in the working directory
    try:
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--before-save is {name!r}; expected MODULE:FUNCTION: {error}.") from error
    return found
