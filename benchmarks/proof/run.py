# SPDX-License-Identifier: Apache-2.0
"""Proof of every claim that needs a GPU, in one command.

    python -m lamp_trt.benchmarks.proof [PART ...] [--backend NAME ...] [--folder FOLDER] [--out FOLDER]
                                            [--budget SECONDS]

Parts, in this order if none is named, the most important first:

    kernels    the CUDA kernels, on which everything rests
    unet       the LAMP UNet on every backend: parity, capture, motions, memory, time
    peers      PyTorch on the same UNet, for comparison of the times
    sdxl       unet and peers for SDXL's UNet
    hoists     gain and cost of each hoist of docs/lean.md
    tensorrt   its builds, its timing cache, the cost of refit
    pipeline   a prompt to a video at full size, the largest part

Weights are random. Each check is printed as it ends and written at once to <part>-proof-<gpu>.json; a check
that the budget leaves no time for is written as not run. With --folder, a later call uses the checkpoints,
bundles and engines of an earlier one. Exit code 0: every check passed, or named what it lacks.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.timing import file_name, machine
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.registry import backends_on, device_engine, find_backend
from lamp_trt.engine.backends.tensorrt import BACKEND as TENSORRT
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError


@dataclass(frozen=True)
class Outcome:
    """One check's end: result is "passed", "failed", "skipped" or "not run"."""

    claim: str
    result: str
    figures: str
    seconds: float


def on_gpus() -> tuple[str, ...]:
    """Return the names of the backends that run on GPUs."""
    return tuple(backend.name for backend in backends_on(0))


@dataclass
class Session:
    """State of one command. results: figures of the part under way, for its report."""

    out: Path
    folder: Path
    deadline: float
    backends: tuple[str, ...] = field(default_factory=on_gpus)
    results: dict[str, Any] = field(default_factory=dict)
    _works: dict[str, Any] = field(default_factory=dict)

    @property
    def lamp(self) -> Any:
        """The LAMP UNet's Work, shared by the parts that need it."""
        from lamp_trt.benchmarks.proof.work import LAMP

        return self._work(LAMP)

    @property
    def sdxl(self) -> Any:
        """The Work of SDXL's UNet."""
        from lamp_trt.benchmarks.proof.work import SDXL

        return self._work(SDXL)

    def _work(self, subject: Any) -> Any:
        if subject.network not in self._works:
            from lamp_trt.benchmarks.proof.work import Work
            from lamp_trt.runtime.cuda.device import CudaDevice

            device = next((work.device for work in self._works.values()), None) or CudaDevice()
            self._works[subject.network] = Work(self.folder, device, load_network, subject)
        return self._works[subject.network]


def kernels(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.kernels import checks as proof_kernels

    return proof_kernels.checks(session.out)


def unet(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.unet import UnetProof

    session.results = session.lamp.results
    for backend in session.backends:
        yield from UnetProof(session.lamp, backend).checks()


def peers(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof import peers as proof_peers

    session.results = session.lamp.results
    return proof_peers.checks(session.lamp)


def sdxl(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof import peers as proof_peers
    from lamp_trt.benchmarks.proof.unet import UnetProof

    session.results = session.sdxl.results
    for backend in session.backends:
        yield from UnetProof(session.sdxl, backend).checks()
    yield from proof_peers.checks(session.sdxl)


def hoists(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.hoists import HoistsProof

    table: list[dict[str, Any]] = []
    session.results = {"hoists": table}
    for work in (session.lamp, session.sdxl):
        for backend in session.backends:
            yield from HoistsProof(work, backend, table).checks()


def tensorrt(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.tensorrt import TensorRtProof

    session.results = session.lamp.results
    return TensorRtProof(session.lamp).checks()


def pipeline(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.pipeline import PipelineProof

    session.results = {}
    for backend in session.backends:
        yield from PipelineProof(session.folder, backend, session.results).checks()


PARTS: dict[str, Callable[[Session], Iterator[Check]]] = {
    "kernels": kernels,
    "unet": unet,
    "peers": peers,
    "sdxl": sdxl,
    "hoists": hoists,
    TENSORRT.name: tensorrt,
    "pipeline": pipeline,
}


def load_network(backend: str, work: Any, network: str) -> Any:
    """Load a network of a work's bundle on a backend, compiled first where needed; Unavailable where that
    is impossible."""
    try:
        bundle = work.bundle
        compile_networks(backend, work, bundle)
        return device_engine(
            backend,
            bundle,
            network,
            device=work.device.ordinal,
            stream=work.device.stream,
            motion=work.subject.motion if network == work.subject.network else None,
        )
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error


def compile_networks(backend: str, work: Any, bundle: Bundle) -> None:
    """Compile the networks of the bundle that have no engine in it yet."""
    record = find_backend(backend)
    if record.build is None:
        return
    start = time.perf_counter()
    try:
        record.library()
    except EngineError as error:
        raise Unavailable(str(error)) from error
    motions = work.subject.motions[: 1 if work.hoist else None]
    record.build(BuildRequest(bundle, device="cuda", motions=motions, checkpoints=work.options))
    seconds = time.perf_counter() - start
    if seconds > 1:
        print(f"{backend}: compiled in {seconds:.1f} s", flush=True)


def make(claim: str, function: Callable[[], str]) -> Outcome:
    """Make one check, on its own stream, and print its outcome. A failed one does not stop the others."""
    start = time.perf_counter()
    try:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            result, figures = "passed", function()
    except Unavailable as reason:
        result, figures = "skipped", str(reason)
    except Exception:  # noqa: BLE001
        result, figures = "failed", traceback.format_exc()
    torch.cuda.empty_cache()
    return _told(Outcome(claim, result, figures, time.perf_counter() - start))


def run_part(name: str, session: Session, facts: dict[str, str]) -> list[Outcome]:
    """Make every check of a part; write the report after each."""
    path = session.out / f"{name}-proof-{file_name(facts['gpu'])}.json"
    outcomes: list[Outcome] = []
    for claim, function in PARTS[name](session):
        if time.monotonic() > session.deadline:
            outcomes.append(_told(Outcome(claim, "not run", "the budget was spent", 0.0)))
        else:
            outcomes.append(make(claim, function))
        report = {
            "machine": facts,
            "checks": [asdict(outcome) for outcome in outcomes],
            "figures": session.results,
        }
        path.write_text(json.dumps(report, indent=1) + "\n")
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lamp_trt.benchmarks.proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--backend",
        action="append",
        choices=on_gpus(),
        help="of unet, sdxl, hoists and pipeline; may be repeated; default: all",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", help="results folder"
    )
    parser.add_argument("--budget", type=float, default=480.0, help="start no check after so many seconds")
    parser.add_argument(
        "--folder", type=Path, help="for checkpoints and bundles, kept; default: a temporary one"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("no CUDA device: these proofs need one", file=sys.stderr)
        return 1
    facts = machine()
    print(json.dumps(facts), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        session = Session(options.out, folder, deadline, tuple(options.backend or on_gpus()))
        parts = options.parts or list(PARTS)
        outcomes = [outcome for name in parts for outcome in run_part(name, session, facts)]
    return 1 if any(outcome.result == "failed" for outcome in outcomes) else 0


def _told(outcome: Outcome) -> Outcome:
    print(f"{outcome.result:8}{outcome.seconds:6.1f} s  {outcome.claim}: {outcome.figures}", flush=True)
    return outcome
