# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt inspect`: show the contents of a bundle."""

import argparse
import json
from dataclasses import asdict

from lamp_trt.commands.shared import file_path, require_parent
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import NETWORKS

DESCRIPTION = "Show the contents of a bundle."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=file_path, help="the bundle's folder")
    parser.add_argument("--verify-files", action="store_true", help="read and check every byte")
    parser.add_argument(
        "--layers",
        choices=[*NETWORKS],
        help="the layers of this network's TensorRT engine on this GPU (build it with --detailed)",
        metavar="NETWORK",
    )
    parser.add_argument(
        "--engine-dir", type=file_path, help="where that engine is; default: in the bundle", metavar="DIR"
    )
    parser.add_argument(
        "--inputs",
        help="write inputs of this network to --out, for polygraphy run --load-inputs",
        metavar="NETWORK",
    )
    parser.add_argument("--out", type=file_path, help="where --inputs goes", metavar="FILE.json")


def run(args: argparse.Namespace) -> None:
    if args.layers:
        _show_layers(args)
        return
    if args.inputs or args.out:
        _save_inputs(args)
        return
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.engine.bundle.report import bundle_summary, summary_text

    bundle = Bundle.open(args.bundle, verify="full" if args.verify_files else "stat")
    checked = "every byte checked" if args.verify_files else "as when last checked"
    summary = bundle_summary(bundle)
    print(json.dumps(summary) if args.json else summary_text(summary, checked))


def _show_layers(args: argparse.Namespace) -> None:
    from lamp_trt.engine.backends.tensorrt.layers import layers_text, plan_layers
    from lamp_trt.engine.bundle.reader import Bundle

    layers = plan_layers(Bundle.open(args.bundle), args.layers, engine_dir=args.engine_dir)
    print(json.dumps([asdict(layer) for layer in layers]) if args.json else layers_text(layers))


def _save_inputs(args: argparse.Namespace) -> None:
    from lamp_trt.benchmarks.verify.options import PROMPT
    from lamp_trt.benchmarks.verify.polygraphy_inputs import network_inputs, save_inputs
    from lamp_trt.engine.bundle.reader import Bundle

    if not (args.inputs and args.out):
        raise InputError("--inputs NETWORK and --out FILE.json belong together: give both.")
    require_parent(args.out)
    inputs = network_inputs(Bundle.open(args.bundle), args.inputs, PROMPT)
    save_inputs(args.out, inputs)
    if args.json:
        shapes = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in inputs.items()}
        print(json.dumps({"path": str(args.out), "inputs": shapes}))
        return
    for name, array in inputs.items():
        print(f"{name:40} {array.dtype} {list(array.shape)}")
