# SPDX-License-Identifier: Apache-2.0
"""A benchmark as Markdown."""

from collections.abc import Sequence

from lamp_trt.benchmarks.bench.result import BenchResult
from lamp_trt.benchmarks.report.tables import Table, headline, tables, title


def markdown(result: BenchResult) -> str:
    """Return the report without its figures, which are in the HTML."""
    lines = [f"# {title(result)}", ""]
    lines += [
        f"- {label}: **{value}** {explanation}".rstrip() for label, value, explanation in headline(result)
    ]
    for table in tables(result):
        lines += ["", f"## {table.title}", ""]
        if table.note:
            lines += [table.note, ""]
        lines += table_lines(table)
    if result.not_measured:
        lines += ["", "## Not measured", "", *(f"- {what}" for what in result.not_measured)]
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> list[str]:
    rule = ["---" if column in table.left else "---:" for column in range(len(table.header))]
    return [_line(table.header), _line(rule), *(_line(row) for row in table.rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
