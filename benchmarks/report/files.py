# SPDX-License-Identifier: Apache-2.0
"""The three files of a report."""

from pathlib import Path

from lamp_trt.benchmarks.bench.result import BenchResult, result_text
from lamp_trt.benchmarks.report.html import page
from lamp_trt.benchmarks.report.markdown import markdown
from lamp_trt.engine.errors import InputError

JSON, MARKDOWN, HTML = "bench.json", "bench.md", "bench.html"


def check_folder(folder: Path) -> None:
    """Make the folder, so that it is known to be there before anything is measured. InputError if it cannot
    be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out is {folder}, which cannot be made a folder ({error.strerror}).") from error


def write_reports(result: BenchResult, folder: Path) -> None:
    """JSON, Markdown and HTML; what was there is replaced."""
    (folder / JSON).write_text(result_text(result))
    (folder / MARKDOWN).write_text(markdown(result))
    (folder / HTML).write_text(page(result))
