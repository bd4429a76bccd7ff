# SPDX-License-Identifier: Apache-2.0
"""Recorder of the committed results: toy networks and the mid-size UNet on this machine, with PyTorch
baselines.

    python -m lamp_trt.benchmarks.studies.record FOLDER [--budget 10m] [--only toy|mid-size]

FOLDER keeps checkpoints, bundles and reports; missing ones are made. Run it on an idle machine, then write
the tables: python -m lamp_trt.benchmarks.studies.readme_tables docs/benchmarks.md
"""

import argparse
import logging
import re
from pathlib import Path

from lamp_trt.benchmarks.bench.options import BenchOptions, budget_seconds
from lamp_trt.benchmarks.bench.result import result_text
from lamp_trt.benchmarks.bench.run import run_bench
from lamp_trt.benchmarks.report.files import check_folder, write_reports
from lamp_trt.benchmarks.studies.unet_cpu import write_checkpoint
from lamp_trt.benchmarks.verify.options import Checkpoints
from lamp_trt.export.build import build_bundle
from lamp_trt.export.recipe import BuildOptions
from lamp_trt.export.toy.checkpoints import write_toy

RESULTS = Path(__file__).resolve().parent.parent / "results"
STEPS = 4
"""Steps of whole videos and of the compared loops: at this scale time is proportional to steps."""


def toy_checkpoints(folder: Path) -> Checkpoints:
    if not folder.exists():
        write_toy(folder)
    motions = {name: folder / "motions" / name for name in ("horse_run", "rain")}
    return Checkpoints(folder / "sd", motions, folder / "sdxl")


def mid_size_checkpoints(folder: Path) -> Checkpoints:
    """Return a LAMP UNet of widths (64, 128, 256, 256) with random weights, written if missing."""
    if not folder.exists():
        write_checkpoint(folder)
    return Checkpoints(motions={"random": folder})


SUBJECTS = {"toy": toy_checkpoints, "mid-size": mid_size_checkpoints}


def record(name: str, folder: Path, budget_s: float) -> Path:
    """Build and measure one subject in `folder`; return the path of its committed result."""
    checkpoints = SUBJECTS[name](folder / f"{name}-checkpoints")
    bundle, report = folder / f"{name}-bundle", folder / f"{name}-report"
    build_bundle(bundle, BuildOptions(sd=checkpoints.sd, motions=checkpoints.motions, sdxl=checkpoints.sdxl))
    check_folder(report)
    options = BenchOptions(
        checkpoints, budget_s=budget_s, full=True, num_inference_steps=STEPS, parity_steps=STEPS
    )
    result = run_bench(bundle, options)
    write_reports(result, report)
    machine = f"{result.machine['cpu_threads']}-core-{_slug(result.machine['cpu'])}"
    result.sheets = {}
    path = RESULTS / f"bench-{name}-{machine}.json"
    path.write_text(result_text(result))
    return path


def _slug(cpu: str) -> str:
    """Shorten a CPU's name for a file name: AMD EPYC 7B13 becomes epyc-7b13."""
    words = re.sub(r"\((R|TM)\)|\b(AMD|Intel|CPU|Processor)\b|@.*", " ", cpu)
    return "-".join(re.findall(r"[\w.]+", words.lower()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", default="10m", help="of each subject")
    parser.add_argument("--only", choices=SUBJECTS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else SUBJECTS:
        print(record(name, options.folder, budget_seconds(options.budget)))


if __name__ == "__main__":
    main()
