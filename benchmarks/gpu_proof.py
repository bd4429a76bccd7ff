# SPDX-License-Identifier: Apache-2.0
"""What can only be shown on a GPU, part by part, in one call each.

    python -m lamp_trt.benchmarks.gpu_proof kernels [--out FOLDER]

A part is a function in PARTS that yields checks. Each check is printed as it ends, and all are written to
<part>-proof-<gpu>.json. Exit code 0: every check passed, or named what it lacks.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lamp_trt.benchmarks import proof_kernels
from lamp_trt.benchmarks.cuda_timing import file_name, machine
from lamp_trt.benchmarks.proof import Check, Unavailable

PARTS: dict[str, Callable[[Path], Iterator[Check]]] = {"kernels": proof_kernels.checks}


@dataclass(frozen=True)
class Outcome:
    """One check's end: result is "passed", "failed" or "skipped"."""

    claim: str
    result: str
    figures: str
    seconds: float


def make(claim: str, function: Callable[[], str]) -> Outcome:
    """Makes one check, on its own stream, and prints how it went. A failed one does not stop the others."""
    start = time.perf_counter()
    try:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            result, figures = "passed", function()
    except Unavailable as reason:
        result, figures = "skipped", str(reason)
    except Exception:  # noqa: BLE001
        result, figures = "failed", traceback.format_exc()
    outcome = Outcome(claim, result, figures, time.perf_counter() - start)
    print(f"{result:8}{outcome.seconds:6.1f} s  {claim}: {figures}", flush=True)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="results folder")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: these proofs need one", file=sys.stderr)
        return 1
    facts = machine()
    print(json.dumps(facts), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = [make(claim, function) for claim, function in PARTS[options.part](options.out)]
    report = {"machine": facts, "checks": [asdict(outcome) for outcome in outcomes]}
    path = options.out / f"{options.part}-proof-{file_name(facts['gpu'])}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(outcome.result == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
