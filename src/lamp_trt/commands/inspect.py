# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt inspect`: what a bundle holds."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lamp_trt.engine.networks import NETWORKS

DESCRIPTION = "Show what a bundle holds."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--verify-files", action="store_true", help="read and check every byte")
    parser.add_argument(
        "--layers",
        choices=[*NETWORKS],
        help="the layers of this network's TensorRT engine on this GPU (build it with --detailed)",
        metavar="NETWORK",
    )
    parser.add_argument("--engine-dir", type=Path, help="where that engine is", metavar="DIR")


def run(args: argparse.Namespace) -> None:
    if args.layers:
        _show_layers(args)
        return
    from lamp_trt.engine.bundle import Bundle
    from lamp_trt.engine.bundle_report import bundle_summary, summary_text

    bundle = Bundle.open(args.bundle, verify="full" if args.verify_files else "stat")
    checked = "every byte checked" if args.verify_files else "as when last checked"
    summary = bundle_summary(bundle)
    print(json.dumps(summary) if args.json else summary_text(summary, checked))


def _show_layers(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle import Bundle
    from lamp_trt.engine.tensorrt_layers import layers_text, plan_layers

    layers = plan_layers(Bundle.open(args.bundle), args.layers, engine_dir=args.engine_dir)
    print(json.dumps([asdict(layer) for layer in layers]) if args.json else layers_text(layers))
