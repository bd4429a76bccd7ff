# SPDX-License-Identifier: Apache-2.0
"""Generator of the tables in the documents, from the committed results.

    python -m lamp_trt.benchmarks.studies.readme_tables README.md docs/benchmarks.md [--check]

The text between `<!-- table: NAME -->` and `<!-- end of table -->` is replaced by TABLES[NAME]. Numbers are
published in no other way. With --check nothing is written, and the exit code is 1 if a document differs.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.result import BenchResult
from lamp_trt.benchmarks.report.markdown import table_lines
from lamp_trt.benchmarks.report.tables import Table, roofline_table, speed_up_table, times_table
from lamp_trt.benchmarks.studies.cpu_peers import table as cpu_peers
from lamp_trt.benchmarks.studies.cpu_tables import hoists_table, motion_switch_table, unet_cpu_table
from lamp_trt.benchmarks.studies.full_size import table as full_size
from lamp_trt.engine.errors import InputError

RESULTS = Path(__file__).resolve().parent.parent / "results"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def _bench_table(table: Callable[[BenchResult], Table], values: Mapping[str, Any]) -> Table:
    return table(BenchResult.from_json(values))


_networks = partial(times_table, title="Networks", groups=("networks", "peers"), note="")
_videos = partial(times_table, title="Stages and videos", groups=("stages", "videos"), note="")

_PEERS = "cpu-peers-2-core-epyc.json"
_FULL_SIZE = "full-size-2-core-epyc.json"

TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Table]]] = {
    "unet-cpu": ("unet-cpu-2-core-epyc.json", unet_cpu_table),
    "hoists-cpu": ("hoists-cpu-2-core-epyc.json", hoists_table),
    "motion-switch": ("motion-switch-2-core-epyc.json", motion_switch_table),
    "full-size": (_FULL_SIZE, full_size.networks_table),
    "full-size-videos": (_FULL_SIZE, full_size.videos_table),
    "toy-peers": (_PEERS, partial(cpu_peers.times_table, subject="toy")),
    "toy-peers-videos": (_PEERS, partial(cpu_peers.videos_table, subject="toy")),
    "mid-size-peers": (_PEERS, partial(cpu_peers.networks_table, subject="mid-size")),
    "toy-networks": ("bench-toy-2-core-epyc.json", partial(_bench_table, _networks)),
    "toy-videos": ("bench-toy-2-core-epyc.json", partial(_bench_table, _videos)),
    "toy-roofline": ("bench-toy-2-core-epyc.json", partial(_bench_table, roofline_table)),
    "mid-size-networks": ("bench-mid-size-2-core-epyc.json", partial(_bench_table, _networks)),
    "mid-size-ratios": ("bench-mid-size-2-core-epyc.json", partial(_bench_table, speed_up_table)),
    "mid-size-roofline": ("bench-mid-size-2-core-epyc.json", partial(_bench_table, roofline_table)),
}
"""Name → file of committed results, and the function that makes its table."""


def filled(document: str) -> str:
    """Return the document with its tables filled in. InputError for an unknown table or missing results."""

    def replace(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}{_table_text(name)}\n{end}"

    return _BLOCK.sub(replace, document)


def _table_text(name: str) -> str:
    if name not in TABLES:
        raise InputError(f"there is no table {name!r}; known: {', '.join(TABLES)}.")
    file, make = TABLES[name]
    if not (RESULTS / file).is_file():
        raise InputError(f"table {name!r} needs {RESULTS / file}, which is not there: measure and commit it.")
    table = make(json.loads((RESULTS / file).read_text()))
    return "\n".join([*([table.note, ""] if table.note else []), *table_lines(table)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    differing = [path for path in options.documents if filled(path.read_text()) != path.read_text()]
    for path in differing:
        print(f"{path}: {'differs from the results' if options.check else 'written'}")
        if not options.check:
            path.write_text(filled(path.read_text()))
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
