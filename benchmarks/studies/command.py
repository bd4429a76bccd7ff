# SPDX-License-Identifier: Apache-2.0
"""Command line of a study: the options that all have, and where the results go."""

import argparse
import json
from pathlib import Path
from typing import Any


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with --out, and --folder for the processes that a study starts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the JSON here, not to stdout")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """Write the results as JSON to `out`, or to stdout without it."""
    text = json.dumps(result, indent=2)
    if out:
        out.write_text(text + "\n")
    else:
        print(text)
