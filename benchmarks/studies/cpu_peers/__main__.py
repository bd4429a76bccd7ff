# SPDX-License-Identifier: Apache-2.0
"""Every network of the toy bundle and the mid-size UNet on a CPU: each backend, PyTorch eager, torch.compile.

    python -m lamp_trt.benchmarks.studies.cpu_peers FOLDER [--limit 45m] [--seconds 20] [--rounds 3]
        [--only SUBJECT …] [--network NAME …] [--out FILE.json]

Each way to compute a network has a process of its own, which gives it a peak of its own. They take turns, so
that a slow-down of the machine meets all of them. Then whole videos, and two pipelines in one process. FOLDER
keeps checkpoints, bundles, AOTInductor packages, torch.compile's cache and the figures of each network. What
is there is kept, so that a run that was ended goes on. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.benchmarks.bench.machine_facts import machine_facts
from lamp_trt.benchmarks.bench.options import budget_seconds
from lamp_trt.benchmarks.studies.command import write_result
from lamp_trt.benchmarks.studies.cpu_peers import TWO_VIDEOS, VIDEO
from lamp_trt.benchmarks.studies.cpu_peers.ways import (
    EAGER,
    backend_ways,
    network_ways,
    outputs_path,
)
from lamp_trt.benchmarks.studies.products import product_flops
from lamp_trt.benchmarks.studies.record import SUBJECTS
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.registry import backends_on
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.files.output import write_text

WORKER = "lamp_trt.benchmarks.studies.cpu_peers.ways"
LIMITS = "limits"


class Worker:
    """One way, in a process of its own. figures: what it measured; `failed` after it ended early."""

    def __init__(self, folder: Path, subject: str, what: str, way: str) -> None:
        self.title, self.failed, self.turns = way, "", list[dict[str, float]]()
        cache = str((folder / "inductor").absolute())
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads could fill up)
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder), subject, what, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
        )
        self.load_s = (self._answer() or {}).get("load_s", 0.0)

    def run(self) -> None:
        """One turn, unless it failed before."""
        if self.failed:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the answer shows
            self._process.stdin.write("run\n")
        answer = self._answer()
        if answer:
            self.turns.append(answer)

    def close(self) -> None:
        self._process.communicate()
        self._said.close()

    def figures(self) -> dict[str, Any]:
        if self.failed or len(self.turns) < 2:
            return {"failed": self.failed or "the time limit came first"}
        first, *warm = self.turns
        return {
            "load_s": self.load_s,
            "first_s": first["wall_s"],
            "wall_s": statistics.median(turn["wall_s"] for turn in warm),
            "cpu_s": statistics.median(turn["cpu_s"] for turn in warm),
            "turns": len(warm),
            "peak_bytes": max(turn["peak_bytes"] for turn in self.turns),
        }

    def _answer(self) -> dict[str, float] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["it printed nothing"]
            self.failed = f"it ended with code {code}: {said[-1]:.300}"
            return None
        answer: dict[str, float] = json.loads(line)
        return answer


def prepare(folder: Path, subject: str, only: Sequence[str]) -> Bundle:
    """Make what is missing of checkpoints, bundle and compiled packages (of all networks, or of `only`)."""
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    given = SUBJECTS[subject](folder / f"{subject}-checkpoints")
    options = BuildOptions(sd=given.sd, motions=given.motions, sdxl=given.sdxl)
    path = folder / f"{subject}-bundle"
    build_bundle(path, options)
    bundle = Bundle.open(path)
    for backend in backends_on(None):
        if backend.build is not None:
            networks = tuple(name for name in bundle.manifest.networks if name in only)
            if networks or not only:
                request = BuildRequest(bundle, device="cpu", networks=networks, checkpoints=options)
                backend.build(request)
    return bundle


def measure(
    folder: Path, subject: str, what: str, ways: Sequence[str], seconds: float, rounds: int
) -> dict[str, Any]:
    """Figures by way. Turns go on until the time is over, and are at least `rounds`."""
    workers = []
    try:
        for way in ways:
            workers.append(Worker(folder, subject, what, way))
            workers[-1].run()  # the first, cold call; torch.compile compiles in it
            print(f"{subject} {what}, {way}: loaded", file=sys.stderr, flush=True)
        start, number = time.monotonic(), 0
        while number < rounds or time.monotonic() - start < seconds:
            number += 1
            for worker in workers:
                worker.run()
    finally:
        for worker in workers:
            worker.close()
    figures = {worker.title: worker.figures() for worker in workers}
    exact = outputs_path(folder, subject, what, EAGER)
    for way in figures:
        path = outputs_path(folder, subject, what, way)
        if exact.is_file() and path.is_file() and way != EAGER:
            figures[way]["rel_l2"] = _farthest(path, exact)
    return figures


def _farthest(path: Path, exact: Path) -> float:
    ours, expected = np.load(path), np.load(exact)
    return max(distance(ours[name], expected[name]).rel_l2 for name in expected)


def parts(folder: Path, subjects: Sequence[str], only: Sequence[str]) -> list[tuple[str, str]]:
    """(subject, network or kind of video) in the order of measuring; makes the subjects."""
    found = []
    for subject in subjects:
        networks = list(prepare(folder, subject, only).manifest.networks)
        videos = [VIDEO, TWO_VIDEOS] if "vae_decoder" in networks else []
        found += [(subject, what) for what in (*networks, *videos) if not only or what in only]
    return found


def figures_path(folder: Path, subject: str, what: str) -> Path:
    return folder / "figures" / f"{subject} {what}.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", default="1h", help="start no network after this time (1h)")
    parser.add_argument("--seconds", type=float, default=20, help="of turns, for each network (20)")
    parser.add_argument("--rounds", type=int, default=3, help="the fewest turns of each way (3)")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="SUBJECT")
    parser.add_argument("--network", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the JSON here, not to stdout")
    options = parser.parse_args()
    folder, end = options.folder, time.monotonic() + budget_seconds(options.limit)
    for name in ("figures", "outputs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    limits = folder / f"{LIMITS}.json"
    if not limits.is_file():
        write_text(limits, json.dumps({name: product_flops(name) for name in ("fp32", "bf16")}))
    result: dict[str, dict[str, Any]] = {subject: {} for subject in options.only}
    missing = []
    for subject, what in parts(folder, options.only, options.network):
        path = figures_path(folder, subject, what)
        if not path.is_file() and time.monotonic() < end:
            ways = tuple(backend_ways()) if what in (VIDEO, TWO_VIDEOS) else network_ways()
            figures = measure(folder, subject, what, ways, options.seconds, options.rounds)
            write_text(path, json.dumps(figures))
        if path.is_file():
            result[subject][what] = json.loads(path.read_text())
        else:
            missing.append(f"{subject} {what}")
    values = {"machine": machine_facts(None), LIMITS: json.loads(limits.read_text()), "subjects": result}
    write_result(values, options.out)
    if missing:
        print(f"not measured: {', '.join(missing)}; run it again to go on", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
