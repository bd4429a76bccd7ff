# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt doctor`: the capabilities of this machine."""

import argparse
import json

from lamp_trt.commands.shared import file_path

DESCRIPTION = "Show what is installed, what can run here, and how to fix the rest."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        action="append",
        choices=["build", "generate"],
        dest="purpose",
        help="purpose of this machine; exit code 1 if it cannot work (default: both)",
    )
    parser.add_argument("--folder", type=file_path, default=".", help="where bundles will be", metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from lamp_trt.doctor import PURPOSES, diagnose, diagnosis_json, diagnosis_text, require_possible

    findings = diagnose(args.folder)
    print(json.dumps(diagnosis_json(findings), indent=2) if args.json else diagnosis_text(findings))
    require_possible(findings, args.purpose or PURPOSES)
