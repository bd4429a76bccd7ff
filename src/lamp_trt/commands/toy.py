# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt toy`: write tiny checkpoints."""

import argparse
import json

from lamp_trt.commands.shared import file_path

DESCRIPTION = "Write tiny checkpoints in the published layouts, to try everything with."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=file_path, help="new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")


def run(args: argparse.Namespace) -> None:
    from lamp_trt.export.toy.checkpoints import write_toy

    write_toy(args.folder, seed=args.seed)
    print(json.dumps({"path": str(args.folder)}) if args.json else args.folder)
