# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet on a CPU: ONNX Runtime and an AOTInductor package against eager PyTorch (SDPA), official and
lean formulation.

    python -m lamp_trt.benchmarks.studies.unet_cpu [--out FILE.json] [--rounds 5]

One step (guidance batch 2, 16 frames, 40x64 latents, fp32) of a UNet with widths (64, 128, 256, 256), 8 heads
and seeded random weights. Each engine has a process of its own, which separates peak memory. They take turns,
one run each a round, so that a busy machine slows all of them. Compiling the package takes minutes.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.benchmarks.studies.command import study_parser, write_result
from lamp_trt.engine.families import LAMP

ENGINES = ("onnxruntime", "aotinductor", "lean", "official")
BASELINES = ("official", "lean")
CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "block_out_channels": [64, 128, 256, 256],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
HEIGHT, WIDTH, NUM_FRAMES = 320, 512, 16


def write_checkpoint(folder: Path) -> None:
    """Write a LAMP checkpoint of CONFIG with seeded random weights; LAMP's own tensors are not zero
    either."""
    import torch
    from safetensors.torch import save_file

    from lamp_trt.export.lamp.unet import LampUNet, LampUNetConfig

    torch.manual_seed(0)
    unet = LampUNet(LampUNetConfig.from_dict(CONFIG))
    state = {
        name: torch.randn_like(tensor) * 0.02 if not tensor.any() else tensor.detach()
        for name, tensor in unet.state_dict().items()
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((2, 4, NUM_FRAMES, HEIGHT // 8, WIDTH // 8)).astype(np.float32),
        "timestep": np.array([501], np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, 768)).astype(np.float32),
    }


def engine(name: str, folder: Path) -> Callable[[], np.ndarray]:
    """Return a function that runs one step of the UNet in `folder`."""
    arrays = inputs()
    if name not in BASELINES:
        from lamp_trt.engine.backends.registry import host_engine
        from lamp_trt.engine.bundle.reader import Bundle

        unet = host_engine(name, Bundle.open(folder / "bundle"), LAMP.unet, motion="random")
        return lambda: unet.run(arrays)["noise_pred"]
    import torch

    from lamp_trt.export.lamp.lean_unet import make_lean
    from lamp_trt.export.lamp.unet import load_lamp_unet

    module = load_lamp_unet(folder / "checkpoint")
    if name == "lean":
        module = make_lean(module)

    def run() -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = module(*map(torch.from_numpy, arrays.values())).numpy()
            return output

    return run


def work(name: str, folder: Path) -> None:
    """Run once for each line on stdin and print the measurements; save the first output to a file."""
    run = engine(name, folder)
    for number, _ in enumerate(sys.stdin):
        wall, cpu = time.perf_counter(), time.process_time()
        output = run()
        measured = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        _, peak_bytes = process_memory()
        if number == 0:
            np.save(folder / f"{name}.npy", output)
        print(json.dumps({**measured, "peak_bytes": peak_bytes}), flush=True)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    write_checkpoint(folder / "checkpoint")
    package = build(folder)
    command = [
        sys.executable,
        "-m",
        "lamp_trt.benchmarks.studies.unet_cpu",
        "--folder",
        str(folder),
        "--worker",
    ]
    workers = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for name in ENGINES
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("run\n")
            line = worker.stdout.readline()
            if not line:
                raise RuntimeError(f"the {name} process ended with code {worker.wait()}")
            print(f"round {number} {name}: {line.strip()}", file=sys.stderr)
            runs[name].append(json.loads(line))
    for worker in workers.values():
        worker.communicate()
    engines = {name: summary(measured) for name, measured in runs.items()}
    return {"engines": engines, "package": package, **parity(folder)}


def build(folder: Path) -> dict[str, Any]:
    """Build the bundle in `folder` and its package; return compile time and size."""
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.export.aotinductor import AotInductorOptions, build_packages
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions, recipe_from_options

    motions = {"random": folder / "checkpoint"}
    options = BuildOptions(motions=motions, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES)
    build_bundle(folder / "bundle", options)
    bundle = Bundle.open(folder / "bundle")
    (package,) = build_packages(bundle, recipe_from_options(options), AotInductorOptions())
    return {"compile_s": package.extra["seconds"], "size_bytes": package.path.stat().st_size}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return medians without the first, cold run, and the peak over all runs."""
    warm = runs[1:]
    return {
        "wall_s": statistics.median(run["wall_s"] for run in warm),
        "wall_s_min": min(run["wall_s"] for run in warm),
        "cpu_s": statistics.median(run["cpu_s"] for run in warm),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def parity(folder: Path) -> dict[str, float]:
    from lamp_trt.benchmarks.verify.metrics import distance

    outputs = {name: np.load(folder / f"{name}.npy") for name in ENGINES}
    return {
        f"{name}_rel_l2": distance(outputs[name], outputs["official"]).rel_l2
        for name in ENGINES
        if name != "official"
    }


def machine() -> dict[str, Any]:
    import onnxruntime
    import torch

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "machine": machine(),
            "config": CONFIG,
            "size": [NUM_FRAMES, HEIGHT, WIDTH],
            **measure(Path(scratch), args.rounds),
        }
    engines = result["engines"]
    for other in BASELINES:
        ratio = engines[other]["wall_s"] / engines["onnxruntime"]["wall_s"]
        result[f"speedup_over_{other}"] = ratio
        print(f"ONNX Runtime is {ratio:.2f}x as fast as eager PyTorch, {other} formulation")
    ratio = engines["aotinductor"]["wall_s"] / engines["onnxruntime"]["wall_s"]
    result["speedup_over_aotinductor"] = ratio
    seconds = result["package"]["compile_s"]
    print(f"... and {ratio:.2f}x as fast as an AOTInductor package, which took {seconds:.0f} s to compile")
    for name, title in (("onnxruntime", "ONNX Runtime"), ("aotinductor", "the package")):
        print(f"peak memory of {title}: {engines[name]['peak_bytes'] / 1e9:.2f} GB")
    write_result(result, args.out)


if __name__ == "__main__":
    main()
