# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt build`: checkpoints into a bundle."""

import argparse
from pathlib import Path

from lamp_trt.commands.shared import named_folders, print_report
from lamp_trt.engine.networks import NETWORKS, PRECISIONS

DESCRIPTION = "Turn checkpoints into a bundle, or add to one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder", metavar="DIR")
    parser.add_argument("--sd", type=Path, help="Stable Diffusion v1.4, diffusers layout", metavar="DIR")
    parser.add_argument(
        "--motion",
        action="append",
        default=[],
        help="a LAMP checkpoint; repeat it for more motions, the first is the default one",
        metavar="NAME=DIR",
    )
    parser.add_argument(
        "--sdxl", type=Path, help="Stable Diffusion XL base, for first frames from text", metavar="DIR"
    )
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="fp32 suits CPUs")
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--frames", type=int, default=16)
    for name in ("height", "width"):
        parser.add_argument(
            f"--first-frame-{name}",
            type=int,
            help=f"of SDXL's image; default: twice --{name}",
            metavar="PIXELS",
        )
    parser.add_argument(
        "--only", action="extend", nargs="+", default=[], help=f"of {', '.join(NETWORKS)}", metavar="NETWORK"
    )
    parser.add_argument("--backend", choices=["onnxruntime"], default="onnxruntime")


def run(args: argparse.Namespace) -> None:
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    options = BuildOptions(
        sd=args.sd,
        motions=named_folders(args.motion),
        sdxl=args.sdxl,
        precision=args.precision,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        first_frame_height=args.first_frame_height,
        first_frame_width=args.first_frame_width,
        only=tuple(args.only),
    )
    print_report(build_bundle(args.out, options), args.json)
