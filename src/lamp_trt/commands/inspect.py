# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt inspect`: what a bundle holds."""

import argparse
import json
from pathlib import Path

DESCRIPTION = "Show what a bundle holds."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--verify-files", action="store_true", help="read and check every byte")


def run(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle import Bundle
    from lamp_trt.engine.bundle_report import bundle_summary, summary_text

    bundle = Bundle.open(args.bundle, verify="full" if args.verify_files else "stat")
    checked = "every byte checked" if args.verify_files else "as when last checked"
    summary = bundle_summary(bundle)
    print(json.dumps(summary) if args.json else summary_text(summary, checked))
