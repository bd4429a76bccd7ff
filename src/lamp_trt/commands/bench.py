# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt bench`: speed, distance from the machine's limits, agreement with PyTorch."""

import argparse
import json

from lamp_trt.commands.shared import add_checkpoints, add_placement, file_path, named_folders, placement

DESCRIPTION = "Measure a bundle on this machine and write a report: JSON, Markdown, HTML."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.benchmarks.bench.options import BUDGET
    from lamp_trt.benchmarks.verify.options import PROMPT

    add_placement(parser)
    parser.add_argument("--budget", default=BUDGET, help="time for measuring: 60s, 5m, 1h", metavar="TIME")
    parser.add_argument("--filter", default="", help="only rows whose name or backend contains this word")
    parser.add_argument("--full", action="store_true", help="also whole videos, PyTorch baselines, builds")
    parser.add_argument(
        "--sweep", action="store_true", help="also the UNet at other frame counts, sizes, precisions"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=file_path,
        help="the bench.json of an earlier run: exit code 1 if anything is slower beyond the noise; "
        "repeat it, oldest first, for a history, of which the last is judged against",
        metavar="OLD.json",
    )
    parser.add_argument(
        "--out", type=file_path, help="folder for bench.json, bench.md, bench.html", metavar="DIR"
    )
    add_checkpoints(parser, "a motion of the bundle and its LAMP checkpoint, for parity with PyTorch")
    parser.add_argument("--prompt", default=PROMPT, help="of everything that takes one")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--steps",
        type=int,
        default=50,
        dest="num_inference_steps",
        help="of the whole videos of --full",
        metavar="STEPS",
    )
    parser.add_argument(
        "--parity-steps",
        type=int,
        default=4,
        help="of the loops that are compared with PyTorch",
        metavar="STEPS",
    )


def run(args: argparse.Namespace) -> None:
    from lamp_trt.benchmarks.bench.compare import require_not_slower
    from lamp_trt.benchmarks.bench.options import BenchOptions, budget_seconds
    from lamp_trt.benchmarks.bench.run import run_bench
    from lamp_trt.benchmarks.report.files import check_folder, write_reports
    from lamp_trt.benchmarks.report.markdown import markdown
    from lamp_trt.benchmarks.verify.options import Checkpoints

    options = BenchOptions(
        Checkpoints(args.sd, named_folders(args.motion), args.sdxl),
        budget_s=budget_seconds(args.budget),
        filter=args.filter,
        full=args.full,
        sweep=args.sweep,
        num_inference_steps=args.num_inference_steps,
        parity_steps=args.parity_steps,
        prompt=args.prompt,
        seed=args.seed,
        compare=tuple(args.compare),
        expect_bundle=args.expect_bundle,
        **vars(placement(args)),
    )
    if args.out:
        check_folder(args.out)
    result = run_bench(args.bundle, options)
    print(json.dumps(result.to_json(), allow_nan=False) if args.json else markdown(result))
    if args.out:
        write_reports(result, args.out)
    require_not_slower(result.changes)
