# SPDX-License-Identifier: Apache-2.0
"""Two ways to switch motions on ONNX Runtime's CPU provider: a new session, or motion tensors as inputs.

    python -m lamp_trt.benchmarks.studies.motion_switch [--motions 8] [--out FILE.json]

Measures the LAMP UNet of unet_cpu.py, each way in a process of its own: time of a step, time of a switch
(without the step after it), and memory after every motion was shown. The runtime uses the faster way.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.studies import unet_cpu
from lamp_trt.benchmarks.studies.command import study_parser, write_result
from lamp_trt.engine.families import LAMP

WAYS = ("session", "inputs")
STEPS = 3
"""Timed steps for each motion; medians are reported."""

Show = Callable[[str], Callable[[], Any]]
"""Motion name → a function that runs one step of it."""


def by_session(bundle_path: Path) -> Show:
    """Give each motion a session of its own with its tensors inside; drop the previous one."""
    from lamp_trt.engine.backends.onnxruntime.session import cpu_model, new_session
    from lamp_trt.engine.bundle.reader import Bundle

    bundle, arrays = Bundle.open(bundle_path, verify="none"), unet_cpu.inputs()
    live: list[Any] = []

    def show(motion: str) -> Callable[[], Any]:
        live.clear()
        model = cpu_model(bundle, LAMP.unet, motion)
        live.append(new_session(bundle, LAMP.unet, model, ["CPUExecutionProvider"]))
        return lambda: live[0].run(None, arrays)

    return show


def by_inputs(bundle_path: Path) -> Show:
    """Use one session with the motion tensors as inputs, from the mapped files, as the backend does."""
    from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
    from lamp_trt.engine.bundle.reader import Bundle

    bundle, arrays = Bundle.open(bundle_path, verify="none"), unet_cpu.inputs()
    engine = OnnxRuntimeEngine(bundle, LAMP.unet, motion=bundle.manifest.default_motion)

    def show(motion: str) -> Callable[[], Any]:
        engine.set_motion(motion)
        return lambda: engine.run(arrays)

    return show


def work(way: str, folder: Path, motions: list[str]) -> dict[str, float]:
    show = {"session": by_session, "inputs": by_inputs}[way](folder / "bundle")
    show(motions[0])()
    switches, steps = [], []
    for motion in [*motions[1:], motions[0]]:
        start = time.perf_counter()
        step = show(motion)
        switches.append(time.perf_counter() - start)
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            steps.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in status if line.endswith(" kB")}
    return {
        "switch_s": statistics.median(switches),
        "step_s": statistics.median(steps),
        "anonymous_bytes": sizes["RssAnon:"],
        "mapped_bytes": sizes["RssFile:"],
        "peak_bytes": sizes["VmHWM:"],
    }


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--motions", type=int, default=8)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    motions = [f"motion{number}" for number in range(args.motions)]
    if args.worker:
        print(json.dumps(work(args.worker, args.folder, motions)))
        return
    from lamp_trt.benchmarks.proof.random_checkpoints import write_lamp_unet
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoints = {
            name: write_lamp_unet(folder / name, unet_cpu.CONFIG, motion=number)
            for number, name in enumerate(motions)
        }
        options = BuildOptions(
            motions=checkpoints,
            height=unet_cpu.HEIGHT,
            width=unet_cpu.WIDTH,
            num_frames=unet_cpu.NUM_FRAMES,
        )
        build_bundle(folder / "bundle", options)
        command = [sys.executable, "-m", "lamp_trt.benchmarks.studies.motion_switch", f"--folder={folder}"]
        command += [f"--motions={args.motions}", "--worker"]
        ways = {
            way: json.loads(subprocess.run([*command, way], check=True, capture_output=True).stdout)
            for way in WAYS
        }
    result = {
        "machine": unet_cpu.machine(),
        "config": unet_cpu.CONFIG,
        "size": [unet_cpu.NUM_FRAMES, unet_cpu.HEIGHT, unet_cpu.WIDTH],
        "motions": args.motions,
        "ways": ways,
    }
    write_result(result, args.out)


if __name__ == "__main__":
    main()
