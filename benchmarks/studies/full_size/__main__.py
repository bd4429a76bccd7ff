# SPDX-License-Identifier: Apache-2.0
"""One step of each UNet, VAE decodes and whole videos of the published size, on this CPU.

    python -m lamp_trt.benchmarks.studies.full_size FOLDER [--limit 40m] [--only PART …] [--out FILE.json]

FOLDER keeps seeded checkpoints (10 GB), their bundle in bf16 (9 GB) and the figures of each part. What is
there is kept, so that a run that was ended goes on. Each part has a process of its own, which gives it a peak
of its own. Run it on an idle machine with 16 GB available.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.machine_facts import machine_facts
from lamp_trt.benchmarks.bench.options import budget_seconds
from lamp_trt.benchmarks.studies.command import write_result
from lamp_trt.benchmarks.studies.full_size.parts import PARTS
from lamp_trt.engine.files.output import write_text

MODULE = "lamp_trt.benchmarks.studies.full_size"


def measured(folder: Path, part: str) -> dict[str, Any] | None:
    """Figures that an earlier run left; None without."""
    path = figures_path(folder, part)
    if not path.is_file():
        return None
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def figures_path(folder: Path, part: str) -> Path:
    return folder / "figures" / f"{part}.json"


def measure(folder: Path, part: str) -> None:
    """Measure one part in a new process, which writes its figures when it has all of them."""
    command = [sys.executable, "-m", MODULE, str(folder), "--part", part]
    print(f"{part} …", file=sys.stderr, flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    seconds, figures = time.monotonic() - start, measured(folder, part)
    print(f"{part}: {seconds:.0f} s, {json.dumps(figures)}", file=sys.stderr, flush=True)


def work(folder: Path, part: str) -> None:
    figures = PARTS[part](folder)
    path = figures_path(folder, part)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", default="1h", help="start no part after this time (1h)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the JSON here, not to stdout")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(options.folder, options.part)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget_seconds(options.limit)
    for part in options.only:
        if measured(options.folder, part) is None and time.monotonic() < end:
            measure(options.folder, part)
    figures = {part: measured(options.folder, part) for part in PARTS}
    missing = [part for part, value in figures.items() if value is None]
    write_result({"machine": machine_facts(None), "parts": figures}, options.out)
    if missing:
        print(f"not measured: {', '.join(missing)}; run it again to go on", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
