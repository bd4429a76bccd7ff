# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt image`: make a first frame from a prompt."""

import argparse
import json
from pathlib import Path

from lamp_trt.commands.bars import Bars
from lamp_trt.commands.flags import add_settings, given
from lamp_trt.commands.shared import add_placement, add_verify_files, file_path, log_timings, placement
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import settings_of

DESCRIPTION = "Make only the first frame of a video, to try prompts quickly."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.runtime.requests import FirstFrameRequest

    parser.add_argument("prompt", type=without_marks, help="of the image", metavar="PROMPT")
    add_placement(parser)
    add_verify_files(parser)
    parser.add_argument(
        "--out", type=file_path, help="a .png file; default: named after the prompt", metavar="IMAGE"
    )
    add_settings(parser, settings_of(FirstFrameRequest))


def run(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.runtime.control import Control
    from lamp_trt.runtime.first_frame import check_png
    from lamp_trt.runtime.jobs import slug
    from lamp_trt.runtime.load import load_first_frame_maker
    from lamp_trt.runtime.requests import FirstFrameRequest

    out = check_png(args.out or Path(f"{slug(args.prompt)}.png"))
    bundle = Bundle.open(
        args.bundle, verify="full" if args.verify_files else "stat", expect_digest=args.expect_bundle
    )
    request = FirstFrameRequest(args.prompt, **given(args, settings_of(FirstFrameRequest)))
    with load_first_frame_maker(bundle, placement(args)) as make, Bars() as bars:
        made = make(request, control=Control(bars))
    path = made.save(out)
    log_timings(made.timings)
    result = {"path": str(path), "timings": made.timings, "settings": made.settings}
    print(json.dumps(result) if args.json else path)
