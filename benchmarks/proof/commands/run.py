# SPDX-License-Identifier: Apache-2.0
"""Proof of every claim that needs a GPU, in one command.

    python -m lamp_trt.benchmarks.proof [PART ...] [--backend NAME ...] [--folder FOLDER] [--out FOLDER]
                                            [--budget SECONDS]
    python -m lamp_trt.benchmarks.proof plan --out DIR       # the same as scripts for a machine that is lent
    python -m lamp_trt.benchmarks.proof report --folder FOLDER --out DIR

Parts, in this order if none is named: `prepare`, which makes checkpoints, bundles and engines; `kernels`,
which everything rests on; `unet`, the LAMP UNet on every backend (parity, capture, motions, memory, time),
for it takes nearly all of a video's time; `profile`, where a step's time goes, kernel by kernel;
`candidates`, the forms of its layers that are equal in exact arithmetic, each timed; `peers`, PyTorch on the
same, which its times are held against; `sdxl`, all that for SDXL's UNet; then what decides options: `hoists`
(what each hoist of docs/lean.md gives and costs), `tensorrt` (its builds, its timing cache, what refit
costs); and last `pipeline`, a prompt to a video at full size, which needs most.
Weights are random. Each check is printed as it ends and written to <part>-proof-<gpu>.json when it starts and
when it ends, so that a cut-off loses nothing; what the budget leaves no time for is written as not run. With
--folder, a later call goes on with the checkpoints, bundles, engines and results of an earlier one. Exit code
0: every check passed, or named what it lacks.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.proof import gpu
from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.commands.outcomes import Outcome, PartReport, cut_off
from lamp_trt.benchmarks.proof.commands.parts import INDEPENDENT, PARTS
from lamp_trt.benchmarks.proof.commands.session import WHOLE, Session, on_gpus
from lamp_trt.benchmarks.proof.names import report_name
from lamp_trt.benchmarks.proof.timing import machine


class TimeIsUp(BaseException):
    """`timeout` or a person asked this process to end."""


def make(claim: str, function: Callable[[], str]) -> Outcome:
    """Makes one check, on its own stream. A failed one does not stop the others."""
    start = time.perf_counter()
    detail = ""
    try:
        with gpu.own_stream():
            result, figures = "passed", function()
        gpu.release_cached()
    except Unavailable as reason:
        result, figures = "skipped", str(reason)
    except Exception as error:  # noqa: BLE001
        if isinstance(error, ImportError) and not (error.name or "").startswith("lamp_trt"):
            result, figures = "skipped", f"what it needs is not installed, or too old: {error}"
        else:
            result, figures, detail = "failed", f"{type(error).__name__}: {error}", traceback.format_exc()
    return Outcome(claim, result, figures, time.perf_counter() - start, detail)


def run_part(name: str, session: Session, facts: Mapping[str, str]) -> list[Outcome]:
    """Every check of a part. TimeIsUp ends the check under way, and is raised again once all have a row."""
    report = PartReport.open(session.out / report_name(name, facts["gpu"]), facts)
    outcomes: list[Outcome] = []
    over: TimeIsUp | None = None
    for claim, function in _checks(name, session):
        before = report.earlier.get(claim)
        start = time.monotonic()
        if name in INDEPENDENT and before is not None and before.result == "passed":
            outcome = before
        elif over is not None or start > session.deadline:
            outcome = Outcome(claim, "not run", "the time was spent")
        else:
            report.started(claim, session.results)
            try:
                outcome = make(claim, function)
            except TimeIsUp as error:
                over, outcome = error, cut_off(claim, time.monotonic() - start)
        outcomes.append(report.ended(outcome, session.results))
        print(outcome, flush=True)
    if over is not None:
        raise over
    return outcomes


def _checks(name: str, session: Session) -> Iterator[Check]:
    """A part's checks; one that fails in its place where they cannot be listed."""
    try:
        yield from PARTS[name](session)
    except Exception as error:  # noqa: BLE001
        raised = error

        def fail() -> str:
            raise raised

        yield f"{name}: its checks can be made", fail


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not gpu.present():
        print("no CUDA device: these proofs need one", file=sys.stderr)
        return 1
    facts = machine()
    print(json.dumps(facts), flush=True)
    deadline = time.monotonic() + options.budget
    signal.signal(signal.SIGTERM, _raise_time_is_up)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        session = Session(
            options.out,
            folder,
            deadline,
            tuple(options.backend or on_gpus()),
            tuple(options.subject),
            tuple(options.mode),
            options.together,
            not options.no_timings,
            dict(options.build_option),
        )
        return run_parts(options.parts or list(PARTS), session, facts)


def run_parts(parts: Sequence[str], session: Session, facts: Mapping[str, str]) -> int:
    """The exit code: 1 if a check failed."""
    outcomes: list[Outcome] = []
    try:
        for name in parts:
            outcomes += run_part(name, session, facts)
    except TimeIsUp:
        print("the time was spent", flush=True)
    return 1 if any(outcome.result == "failed" for outcome in outcomes) else 0


def _raise_time_is_up(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; what is left takes a moment
    raise TimeIsUp


def _build_option(text: str) -> tuple[str, Any]:
    """The name in BuildRequest.flags, and the value; True without one."""
    name, given, value = text.partition("=")
    return name.removeprefix("--").replace("-", "_"), value if given else True


def _parser() -> argparse.ArgumentParser:
    from lamp_trt.benchmarks.proof.peers import MODES
    from lamp_trt.benchmarks.proof.work import LAMP, SDXL

    parser = argparse.ArgumentParser(
        prog="python -m lamp_trt.benchmarks.proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def part(name: str) -> str:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"there is no part {name!r}; choose of {', '.join(PARTS)}")
        return name

    parser.add_argument("parts", nargs="*", type=part, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--backend", action="append", choices=on_gpus(), help="one to take, may be repeated; default: all"
    )
    parser.add_argument(
        "--subject",
        action="append",
        default=[],
        choices=(LAMP.network, SDXL.network, WHOLE),
        help="of prepare and profile, may be repeated; default: all",
    )
    parser.add_argument(
        "--mode", action="append", default=[], choices=tuple(MODES), help="of peers; default: all"
    )
    parser.add_argument("--together", action="store_true", help="hoists: all of them together only")
    parser.add_argument(
        "--build-option",
        action="append",
        default=[],
        type=_build_option,
        metavar="NAME[=VALUE]",
        help="an option of `lamp-trt build` for engines, like forms=gate=taps or cudnn-benchmark; may be "
        "repeated; default: forms=default",
    )
    parser.add_argument("--no-timings", action="store_true", help="kernels: check them only")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "results", help="results folder"
    )
    parser.add_argument("--budget", type=float, default=480.0, help="start no check after so many seconds")
    parser.add_argument(
        "--folder", type=Path, help="for checkpoints, bundles and engines, kept; default: a temporary one"
    )
    return parser
