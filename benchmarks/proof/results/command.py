# SPDX-License-Identifier: Apache-2.0
"""Writes what the parts have measured so far: report.md, report.html, results.json, logs, engines."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lamp_trt.benchmarks.proof.results import page
from lamp_trt.benchmarks.proof.results.gather import counted, gathered
from lamp_trt.benchmarks.proof.results.pack import Limits, put


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lamp_trt.benchmarks.proof report", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="that the parts were given")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument("--max-files", type=int, default=8)
    parser.add_argument("--max-file-mib", type=int, default=16)
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    results = gathered(folder)
    texts = {
        "report.md": page.markdown(results),
        "report.html": page.html(results),
        "results.json": page.whole(results),
    }
    limits = Limits(options.max_files, options.max_file_mib << 20)
    left_out = put(options.out, texts, folder / "logs", folder / "engines", limits)
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    print(", ".join(f"{count} {name}" for name, count in counted(results).items()))
    return 0
