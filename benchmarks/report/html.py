# SPDX-License-Identifier: Apache-2.0
"""A benchmark as one self-contained HTML page: no network, no script, light and dark, any width."""

from collections.abc import Iterator
from html import escape

from lamp_trt.benchmarks.bench.contact_sheet import AMPLIFICATION
from lamp_trt.benchmarks.bench.result import BenchResult
from lamp_trt.benchmarks.bench.roofline import ceilings, roofs
from lamp_trt.benchmarks.report import figures_time, figures_xy
from lamp_trt.benchmarks.report.style import STYLE
from lamp_trt.benchmarks.report.svg import tag
from lamp_trt.benchmarks.report.tables import Table, headline, tables, title


def page(result: BenchResult) -> str:
    """Return the whole report."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            tag("title", escape(title(result))),
            tag("style", STYLE),
            "</head>",
            "<body>",
            tag("main", "\n".join(_sections(result))),
            "</body>",
            "</html>",
            "",
        ]
    )


def _sections(result: BenchResult) -> Iterator[str]:
    machine = result.machine
    where = [machine.get("gpu") or machine["cpu"], f"{machine['cpu_threads']} CPU threads", machine["date"]]
    if machine["commit"]:
        where.append(f"commit {machine['commit'][:10]}")
    yield tag("h1", escape(title(result))) + tag("p", escape(" · ".join(where)), class_="where")
    yield tag("div", "".join(_card(*figure) for figure in headline(result)), class_="cards")
    drawn = dict(_figures(result))
    shown = set()
    for table in tables(result):
        first = table.anchor not in shown
        shown.add(table.anchor)
        yield _section(table, drawn.get(table.anchor, "") if first else "")
        if table.anchor == "parity":
            yield from _sheets(result)
    if result.not_measured:
        items = "".join(tag("li", escape(what)) for what in result.not_measured)
        yield tag("section", tag("h2", "Not measured") + tag("ul", items))


def _figures(result: BenchResult) -> Iterator[tuple[str, str]]:
    """Yield anchors of tables, each with the figures above it."""
    networks, rest = (
        [m for m in result.measurements if m.group in groups]
        for groups in (("networks", "peers"), ("stages", "videos"))
    )
    staged = [m for m in rest if m.parts]
    waterfalls = [_figure(f"{m.name}: its stages, medians", figures_time.waterfall(m)) for m in staged]
    words = "Every call: dots; the middle 80 %: bar; median: stroke. Logarithmic."
    if networks:
        yield "networks", _figure(words, figures_time.scatter(networks))
    if rest:
        yield "stages", _figure(words, figures_time.scatter(rest)) + "".join(waterfalls)
    limits, under = ceilings(result), roofs(result)
    if limits and under:
        yield "roofline", _figure("Under the roof", figures_xy.roofline(under, limits))
    if result.operators:
        yield "operators", _figure("Shares by operator", figures_time.operator_shares(result.operators))
    curves = [
        _figure(f"{loop}: relative L2 after every step", figures_xy.step_errors(steps))
        for loop, steps in result.parity.get("steps", {}).items()
    ]
    yield "parity", "".join(curves)
    if result.growth:
        yield "growth", _figure("Over the work of a step", figures_xy.growth(result.growth))
    if result.changes:
        words = "New over old median; bar: noise of both runs"
        compared = _figure(words, figures_time.changes(result.changes))
        names = [(c.name, c.backend) for c in result.changes]
        yield "changes", compared + _figure("Over commits", figures_time.history(result, names))


def _figure(caption: str, drawing: str) -> str:
    return tag("figure", tag("figcaption", escape(caption)) + drawing) if drawing else ""


def _card(label: str, value: str, explanation: str) -> str:
    parts = (("span", label), ("b", value), ("small", explanation))
    return tag("div", "".join(tag(name, escape(words)) for name, words in parts), class_="card")


def _section(table: Table, figures: str) -> str:
    note = tag("p", escape(table.note), class_="note") if table.note else ""
    drawn = tag("div", figures, class_="figures") if figures else ""
    return tag("section", tag("h2", escape(table.title)) + note + drawn + _table(table))


def _table(table: Table) -> str:
    head = "".join(_cell("th", words, column in table.left) for column, words in enumerate(table.header))
    body = "".join(
        tag("tr", "".join(_cell("td", words, column in table.left) for column, words in enumerate(row)))
        for row in table.rows
    )
    whole = tag("table", (tag("thead", tag("tr", head)) if any(table.header) else "") + tag("tbody", body))
    return tag("div", whole, class_="wide", tabindex=0)


def _cell(name: str, words: str, left: bool) -> str:
    return tag(name, escape(words), class_="words" if left else "number")


def _sheets(result: BenchResult) -> Iterator[str]:
    for name, png in result.sheets.items():
        caption = (
            f"{name}: PyTorch in fp32 above, this bundle in the middle, "
            f"{AMPLIFICATION} times their difference below"
        )
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{escape(png)}">'
        yield tag(
            "figure", tag("figcaption", escape(caption)) + tag("div", image, class_="wide"), class_="sheet"
        )
