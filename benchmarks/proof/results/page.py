# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown and as one HTML page that needs nothing else."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from lamp_trt.benchmarks.proof.profile.figure import profile_figure
from lamp_trt.benchmarks.proof.profile.tables import profile_tables
from lamp_trt.benchmarks.proof.results.candidate_rows import candidate_table
from lamp_trt.benchmarks.proof.results.gather import NOT_MEASURED, PartResult, counted
from lamp_trt.benchmarks.report.style import STYLE
from lamp_trt.benchmarks.report.svg import tag
from lamp_trt.benchmarks.report.tables import Table

WORDS = frozenset({0, 1, 3})
SHOWN = 400
"""Characters of a check's figures in a table; all of them are in results.json."""


def tables(results: list[PartResult]) -> Iterator[Table]:
    """Missing measurements first, then the checks of each part, the profiles, and all layer forms."""
    rows = [
        (result.part, outcome.claim, outcome.result, outcome.figures[:SHOWN])
        for result in results
        for outcome in result.outcomes
        if outcome.result in NOT_MEASURED
    ]
    if rows:
        yield Table("Not measured", ("part", "check", "result", "why"), rows, left=WORDS)
    for result in results:
        done = [o for o in result.outcomes if o.result not in NOT_MEASURED]
        if done:
            checks = [(o.claim, o.result, f"{o.seconds:.1f}", o.figures[:SHOWN]) for o in done]
            yield Table(f"Part {result.part}", ("check", "result", "s", "figures"), checks, left=WORDS)
    for profile in profiles(results):
        yield from profile_tables(profile)
    timed = [result.figures.get("candidates", {}) for result in results if result.part == "candidates"]
    yield candidate_table({title: ms for figures in timed for title, ms in figures.items()})


def profiles(results: list[PartResult]) -> list[dict[str, Any]]:
    """Those that part `profile` made."""
    return [
        figures
        for result in results
        if result.part == "profile"
        for figures in result.figures.values()
        if isinstance(figures, dict) and "kinds" in figures
    ]


def heading(results: list[PartResult]) -> tuple[str, str]:
    """Title, and machine and counts in a line."""
    machine = next((result.machine for result in results if result.machine), {})
    where = " · ".join(f"{name} {value}" for name, value in machine.items() if name != "gpu")
    counts = ", ".join(f"{count} {name}" for name, count in counted(results).items())
    return f"Proofs on {machine.get('gpu', 'no GPU')}", f"{counts} · {where}" if where else counts


def markdown(results: list[PartResult]) -> str:
    title, line = heading(results)
    parts = [f"# {title}", line]
    for table in tables(results):
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        body = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
        parts += [f"## {table.title}", *([table.note] if table.note else []), body]
    return "\n\n".join(parts) + "\n"


def html(results: list[PartResult]) -> str:
    title, line = heading(results)
    figures = [
        tag("figure", tag("figcaption", escape(profile["title"])) + profile_figure(profile))
        for profile in profiles(results)
    ]
    sections = [_section(table) for table in tables(results)]
    body = [tag("h1", escape(title)), tag("p", escape(line), class_="where"), *figures, *sections]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            tag("title", escape(title)) + tag("style", STYLE) + "</head>",
            tag("body", tag("main", "\n".join(body))),
            "</html>",
            "",
        ]
    )


def _section(table: Table) -> str:
    head = tag("tr", "".join(tag("th", escape(name)) for name in table.header))
    rows = "".join(
        tag(
            "tr",
            "".join(
                tag("td", escape(cell), class_="words" if at in table.left else "number")
                for at, cell in enumerate(row)
            ),
        )
        for row in table.rows
    )
    note = tag("p", escape(table.note), class_="note") if table.note else ""
    body = tag("div", tag("table", head + rows), class_="wide")
    return tag("section", tag("h2", escape(table.title)) + note + body)


def whole(results: list[PartResult]) -> str:
    """results.json: everything, tracebacks too."""
    content = [
        {
            "part": result.part,
            "machine": dict(result.machine),
            "checks": [vars(outcome) for outcome in result.outcomes],
            "figures": dict(result.figures),
        }
        for result in results
    ]
    return json.dumps(content, indent=1) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
