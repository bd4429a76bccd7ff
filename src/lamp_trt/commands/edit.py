# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt edit`: edit a video by inversion, from an edited first frame."""

import argparse

from lamp_trt.commands.flags import add_settings, given
from lamp_trt.commands.generate import add_output, add_preview, make_videos
from lamp_trt.commands.shared import add_placement, add_verify_files, file_path
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import SETTINGS, Setting, settings_of

DESCRIPTION = "Edit a video: invert it, and denoise again from an edited first frame and a prompt."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.runtime.requests import ClipRequest

    parser.add_argument("video", type=file_path, help="an mp4, mov, webm or GIF", metavar="VIDEO")
    parser.add_argument("prompt", type=without_marks, help="of the edited video", metavar="PROMPT")
    add_placement(parser, residence=True)
    add_verify_files(parser)
    parser.add_argument(
        "--motion", help="of the bundle, trained on this video; default: the default motion", metavar="NAME"
    )
    parser.add_argument(
        "--first-frame",
        type=file_path,
        help="the edited first frame, an image file; default: the video's own",
        metavar="IMAGE",
    )
    add_settings(parser, settings_of(ClipRequest))
    parser.add_argument(
        "--latents",
        type=file_path,
        help="a .safetensors file of the inverted video: read if it exists, otherwise written",
        metavar="FILE",
    )
    add_settings(parser, edit_settings(), suppress=True)
    add_output(
        parser,
        "a .mp4, .gif or .webp file, or a folder of PNGs; default: named after the prompt",
        "of a video that is not named by --out",
    )
    add_preview(parser)


def edit_settings() -> list[Setting]:
    """Settings of videos whose first frame is given."""
    return [each for each in SETTINGS if each.in_jobs and each.kept != "first_frame"]


def run(args: argparse.Namespace) -> None:
    from lamp_trt.runtime.inverted import check_latents_path
    from lamp_trt.runtime.jobs import Job
    from lamp_trt.runtime.media.clip.reader import check_video
    from lamp_trt.runtime.requests import ClipRequest

    clip = ClipRequest(args.video, **given(args, settings_of(ClipRequest)))
    check_video(clip.video)
    if args.latents is not None:
        check_latents_path(args.latents)
    job = Job(
        args.prompt,
        args.motion,
        args.first_frame,
        given(args, edit_settings()),
        clip=clip,
        latents=args.latents,
        **({"fps": args.fps} if hasattr(args, "fps") else {}),
    )
    make_videos(args, [job])
