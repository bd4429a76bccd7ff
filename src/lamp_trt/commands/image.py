# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt image`: prompts into first frames."""

import argparse
import json
from pathlib import Path

from lamp_trt.commands.shared import add_placement, add_verify_files, file_path, log_timings, placement
from lamp_trt.engine.files.text import without_marks
from lamp_trt.runtime.algorithm.config import GenerationConfig

DESCRIPTION = "Make only the first frame of a video, to try prompts quickly."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config = GenerationConfig()
    parser.add_argument("prompt", type=without_marks, help="of the image", metavar="PROMPT")
    add_placement(parser)
    add_verify_files(parser)
    parser.add_argument(
        "--out", type=file_path, help="a .png file; default: named after the prompt", metavar="IMAGE"
    )
    parser.add_argument(
        "--negative-prompt",
        type=without_marks,
        help="default: what the checkpoint says of none",
        metavar="PROMPT",
    )
    parser.add_argument("--seed", type=int, default=config.seed, help="0 to 2^64-1")
    parser.add_argument(
        "--steps",
        type=int,
        default=config.first_frame_num_inference_steps,
        dest="num_inference_steps",
        help="of SDXL's loop",
        metavar="STEPS",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=config.first_frame_guidance_scale,
        help="1 or less turns guidance off",
        metavar="SCALE",
    )


def run(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.runtime.first_frame import check_png
    from lamp_trt.runtime.jobs import slug
    from lamp_trt.runtime.load import load_first_frame_maker

    out = check_png(args.out or Path(f"{slug(args.prompt)}.png"))
    bundle = Bundle.open(
        args.bundle, verify="full" if args.verify_files else "stat", expect_digest=args.expect_bundle
    )
    make = load_first_frame_maker(bundle, **placement(args))
    made = make(
        args.prompt,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
    )
    path = made.save(out)
    log_timings(made.timings)
    result = {"path": str(path), "timings": made.timings, "settings": made.settings}
    print(json.dumps(result) if args.json else path)
