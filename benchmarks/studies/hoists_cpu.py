# SPDX-License-Identifier: Apache-2.0
"""Effect of each hoist on one step of the LAMP UNet on a CPU.

    python -m lamp_trt.benchmarks.studies.hoists_cpu [--backend NAME] [--rounds 3] [--runs 2] [--out FILE]

UNet and inputs are those of unet_cpu.py, with equal halves of the sample. A step includes the precompute
networks that run at every step; those that run once a prompt are timed apart. Forms take turns, each in a
process of its own that warms up first. CPU seconds stay fair when other programs are running.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.benchmarks.studies.command import study_parser, write_result
from lamp_trt.benchmarks.studies.unet_cpu import (
    CONFIG,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    inputs,
    machine,
    write_checkpoint,
)
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.registry import REFERENCE, backends_on, host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import LAMP
from lamp_trt.engine.precompute import HOISTS, precompute_networks
from lamp_trt.runtime.host.conditioning import conditions_by_step

FORMS = ("", *HOISTS, ",".join(HOISTS))
"""Hoists of each form; "" is the plain UNet."""


def work(folder: Path, backend: str, form: str, runs: int) -> None:
    """Warm up, run, and print the measurements; save the output to a file."""
    bundle = Bundle.open(folder / name_of(form))
    unet = host_engine(backend, bundle, LAMP.unet, motion="random")
    networks = precompute_networks(bundle.manifest, LAMP.unet)
    precompute = [host_engine(backend, bundle, name) for name in networks]
    arrays = inputs()
    sample, text = np.repeat(arrays["sample"][:1], 2, axis=0), arrays["encoder_hidden_states"]
    start = time.perf_counter()
    conditions = conditions_by_step(unet, precompute, {"encoder_hidden_states": text}, [501] * (runs + 1))
    next(conditions)
    once = time.perf_counter() - start
    steps = []
    for number in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        noise_pred = unet.run({"sample": sample, **next(conditions)})["noise_pred"]
        steps.append({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu})
        if number == 0:
            np.save(folder / f"{name_of(form)}.npy", noise_pred)
    print(json.dumps({"before_first_step_s": once, "steps": steps[1:]}))


def name_of(form: str) -> str:
    return f"bundle-{form or 'plain'}"


def build_all(folder: Path) -> None:
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    write_checkpoint(folder / "checkpoint")
    for form in FORMS:
        options = BuildOptions(
            motions={"random": folder / "checkpoint"},
            height=HEIGHT,
            width=WIDTH,
            num_frames=NUM_FRAMES,
            hoist=tuple(filter(None, form.split(","))),
        )
        build_bundle(folder / name_of(form), options)


def measure(folder: Path, backend: str, rounds: int, runs: int) -> dict[str, Any]:
    build_all(folder)
    measured: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for number in range(rounds):
        for form in FORMS:
            command = [
                sys.executable,
                "-m",
                "lamp_trt.benchmarks.studies.hoists_cpu",
                "--folder",
                str(folder),
            ]
            command += ["--backend", backend, "--form", form, "--runs", str(runs)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(f"round {number} {form or 'plain'}: {done.stdout.strip()}", file=sys.stderr)
            measured[form].append(json.loads(done.stdout))
    plain = np.load(folder / f"{name_of('')}.npy")
    return {
        form or "plain": {
            **summary(measured[form]),
            "rel_l2_to_plain": distance(np.load(folder / f"{name_of(form)}.npy"), plain).rel_l2,
        }
        for form in FORMS
    }


def summary(processes: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians and minima over the warm steps of all processes."""
    steps = [step for process in processes for step in process["steps"]]
    return {
        f"{name}{suffix}": of(step[name] for step in steps)
        for name in ("wall_s", "cpu_s")
        for suffix, of in (("", statistics.median), ("_min", min))
    } | {"before_first_step_s": statistics.median(run["before_first_step_s"] for run in processes)}


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each form")
    parser.add_argument("--runs", type=int, default=2, help="steps of each process after the first, cold one")
    parser.add_argument("--backend", choices=[b.name for b in backends_on(None)], default=REFERENCE.name)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        work(args.folder, args.backend, args.form, args.runs)
        return
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as scratch:
        forms = measure(Path(scratch), args.backend, args.rounds, args.runs + 1)
    load.append(os.getloadavg())
    facts = {**machine(), "load_average_before_and_after": load}
    result = {"machine": facts, "config": CONFIG, "size": [NUM_FRAMES, HEIGHT, WIDTH], "forms": forms}
    result["backend"] = args.backend
    for form, figures in forms.items():
        ratio = figures["cpu_s"] / forms["plain"]["cpu_s"]
        print(f"{form:18} {figures['wall_s']:6.2f} s, {figures['cpu_s']:6.2f} CPU s ({ratio:.3f} of plain)")
    write_result(result, args.out)


if __name__ == "__main__":
    main()
