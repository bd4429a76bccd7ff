# SPDX-License-Identifier: Apache-2.0
"""The three files of a report."""

from pathlib import Path

from lamp_trt.benchmarks.bench.result import BenchResult, result_text
from lamp_trt.benchmarks.report.html import page
from lamp_trt.benchmarks.report.markdown import markdown
from lamp_trt.engine.errors import MACHINE_ERRORS, InputError
from lamp_trt.engine.files.output import written

JSON, MARKDOWN, HTML = "bench.json", "bench.md", "bench.html"


def check_folder(folder: Path) -> None:
    """Create the folder before anything is measured. InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise InputError(f"--out is {folder}, which cannot be made a folder ({error.strerror}).") from error


def write_reports(result: BenchResult, folder: Path) -> None:
    """Write JSON, Markdown and HTML, all or none; existing files are replaced."""
    texts = {JSON: result_text(result), MARKDOWN: markdown(result), HTML: page(result)}
    with written(*(folder / name for name in texts)) as partial:
        for path, text in zip(partial, texts.values(), strict=True):
            path.write_bytes(text.encode("utf-8", "backslashreplace"))
