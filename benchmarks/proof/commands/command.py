# SPDX-License-Identifier: Apache-2.0
"""python -m lamp_trt.benchmarks.proof: the commands that need no GPU and no torch, or the parts (run.py)."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    match given[:1]:
        case ["plan"]:
            from lamp_trt.benchmarks.proof.plan.command import main as command
        case ["report"]:
            from lamp_trt.benchmarks.proof.results.command import main as command
        case _:
            from lamp_trt.benchmarks.proof.commands.run import main as run_main

            return run_main(given)
    return command(given[1:])
