# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify`: compare a bundle with PyTorch."""

import argparse
import json

from lamp_trt.commands.shared import (
    add_checkpoints,
    add_engines,
    file_path,
    named_folders,
    placement,
    require_parent,
)

DESCRIPTION = "Compare a bundle, as its backend runs it, with PyTorch on the same checkpoints."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.benchmarks.verify.options import PROMPT, STEPS
    from lamp_trt.engine.files.text import without_marks

    parser.add_argument("bundle", type=file_path, help="the bundle's folder")
    add_checkpoints(parser, "a motion of the bundle and its LAMP checkpoint; repeat it for more")
    add_engines(parser)
    parser.add_argument("--prompt", type=without_marks, default=PROMPT, help="of the image and the clip")
    parser.add_argument("--negative-prompt", type=without_marks, help="default: none", metavar="PROMPT")
    parser.add_argument("--first-frame", type=file_path, help="default: a synthetic picture", metavar="IMAGE")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        dest="num_inference_steps",
        help="of the loops; each step runs every UNet three times, 0 compares networks only",
        metavar="STEPS",
    )
    parser.add_argument("--out", type=file_path, help="also write the report as JSON", metavar="FILE")


def run(args: argparse.Namespace) -> None:
    from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
    from lamp_trt.benchmarks.verify.report import report_text, require_passed
    from lamp_trt.benchmarks.verify.run import verify_bundle
    from lamp_trt.engine.files.output import write_text

    if args.out:
        require_parent(args.out)
    options = VerifyOptions(
        Checkpoints(args.sd, named_folders(args.motion), args.sdxl),
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        first_frame=args.first_frame,
        seed=args.seed,
        num_inference_steps=args.num_inference_steps,
        **vars(placement(args)),
    )
    report = verify_bundle(args.bundle, options)
    as_json = json.dumps(report.to_json(), indent=2, allow_nan=False)
    print(as_json if args.json else report_text(report), flush=True)
    if args.out:
        write_text(args.out, as_json + "\n")
    require_passed(report)
