# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt generate`: prompts and first frames into videos."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import lamp_trt
from lamp_trt.commands.shared import add_placement, add_verify_files, file_path, log_timings, placement
from lamp_trt.engine.backends.backend import Residence
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import FPS, GenerationConfig

DESCRIPTION = "Make videos from prompts, and from first frames if given."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What shapes a video has no default here: a sidecar or the pipeline supplies what is not given."""
    config = GenerationConfig()

    def shaping(flag: str, help: str, **options: Any) -> None:
        parser.add_argument(flag, help=help, default=argparse.SUPPRESS, **options)

    parser.add_argument("prompt", nargs="*", help="one video for each", metavar="PROMPT")
    add_placement(parser)
    add_verify_files(parser)
    parser.add_argument(
        "--resident-motions",
        choices=get_args(Residence),
        default="mapped",
        help="TensorRT: keep motions, once shown, where the next switch to them is faster",
    )
    parser.add_argument(
        "--motion",
        action="append",
        default=[],
        help="of the bundle; repeat it for a video of each; default: the bundle's default motion",
        metavar="NAME",
    )
    shaping(
        "--first-frame",
        "an image file; default: SDXL makes one, if the bundle has it",
        type=file_path,
        metavar="IMAGE",
    )
    shaping(
        "--fit", "of an image of another aspect ratio; default: stretch", choices=["stretch", "crop", "pad"]
    )
    shaping(
        "--background",
        "behind transparent pixels of an image: #rrggbb or a name of CSS; default: white",
        type=_colour,
        metavar="COLOUR",
    )
    shaping("--first-frame-prompt", "for SDXL; default: the prompt", metavar="PROMPT")
    shaping(
        "--first-frame-steps",
        f"of SDXL's loop; default: {config.first_frame_num_inference_steps}",
        type=int,
        dest="first_frame_num_inference_steps",
        metavar="STEPS",
    )
    shaping(
        "--first-frame-guidance-scale",
        f"of SDXL's loop; default: {config.first_frame_guidance_scale}",
        type=float,
        metavar="SCALE",
    )
    parser.add_argument(
        "--save-first-frame", action="store_true", help="also as NAME.first_frame.png beside the video"
    )
    shaping("--negative-prompt", "of the first frame and the video", metavar="PROMPT")
    shaping("--seed", f"default: {config.seed}", type=int)
    shaping(
        "--steps",
        f"default: {config.num_inference_steps}",
        type=int,
        dest="num_inference_steps",
        metavar="STEPS",
    )
    shaping("--guidance-scale", f"default: {config.guidance_scale}", type=float, metavar="SCALE")
    shaping("--preset", f"default: {config.preset}", choices=["official", "paper"])
    shaping("--adain", f"default: {config.adain}", choices=["schedule", "first_frame", "none"])
    shaping("--adain-switch-step", "default: the preset's", type=int, metavar="STEPS")
    shaping("--histogram", "default: the preset's", choices=["none", "official", "exact"])
    shaping("--fps", f"default: {FPS}", type=float)
    parser.add_argument(
        "--out",
        type=file_path,
        help="a .mp4, .gif or .webp file, or a folder: of PNGs, or of videos if there are several; "
        "default: named after the prompt, or the folder videos for several",
    )
    parser.add_argument(
        "--format",
        choices=["mp4", "gif", "webp", "png"],
        default="mp4",
        help="of videos that are not named by --out: without it, and of several",
    )
    parser.add_argument(
        "--prompts", type=file_path, help="a file: a prompt a line, or JSON lines", metavar="FILE"
    )
    parser.add_argument(
        "--from",
        type=file_path,
        dest="sidecar",
        help="repeat the video that this JSON file lies beside, but for the options given here",
        metavar="FILE",
    )
    parser.add_argument(
        "--before-save",
        help="a function that gets each Video and returns the one to save; it refuses by raising",
        metavar="MODULE:FUNCTION",
    )


def run(args: argparse.Namespace) -> None:
    from lamp_trt.runtime.first_frame import save_png
    from lamp_trt.runtime.jobs import (
        OPTIONS,
        Job,
        first_frame_path,
        job_from_sidecar,
        jobs_from_prompts_file,
        run_jobs,
        with_destinations,
    )

    if sum(map(bool, (args.prompt, args.prompts, args.sidecar))) != 1:
        raise InputError("give either prompts, or --prompts FILE, or --from SIDECAR.")
    given = {name: getattr(args, name) for name in ("first_frame", "fps") if hasattr(args, name)}
    options = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
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
    jobs = with_destinations(jobs, args.out, "" if args.format == "png" else f".{args.format}")
    before_save = _function(args.before_save) if args.before_save else None
    pipeline = lamp_trt.load(
        args.bundle,
        resident_motions=args.resident_motions,
        expect_bundle=args.expect_bundle,
        verify_files=args.verify_files,
        **placement(args),
    )
    for path, video in run_jobs(pipeline, jobs, before_save):
        log_timings(video.timings)
        settings = {name: value for name, value in video.settings.items() if name != "first_frame_png"}
        result = {"path": str(path), "timings": video.timings, "settings": settings}
        if args.save_first_frame:
            result["first_frame"] = str(save_png(video.first_frame, first_frame_path(path)))
        print(json.dumps(result) if args.json else path, flush=True)


def _colour(text: str) -> str:
    """A colour as `background_rgb` takes it."""
    from lamp_trt.runtime.media.image_colour import background_rgb

    try:
        background_rgb(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _function(name: str) -> Callable[[Any], Any]:
    """The function that MODULE:FUNCTION names."""
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: a module in the working directory
    try:
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--before-save is {name!r}; expected MODULE:FUNCTION: {error}.") from error
    return found
