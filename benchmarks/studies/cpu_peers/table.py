# SPDX-License-Identifier: Apache-2.0
"""Tables of the study's results."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import amount, seconds, small
from lamp_trt.benchmarks.report.tables import Table
from lamp_trt.benchmarks.studies.cpu_peers import TWO_VIDEOS, VIDEO
from lamp_trt.engine.backends.registry import backends_on

Values = Mapping[str, Any]

_WHOLE = (VIDEO, TWO_VIDEOS)


def times_table(values: Values, subject: str) -> Table:
    """The time of every network by every way."""
    networks = {what: ways for what, ways in values["subjects"][subject].items() if what not in _WHOLE}
    titles = list(dict.fromkeys(way for ways in networks.values() for way in ways))
    rows = [[network, *(_time(ways.get(way, {})) for way in titles)] for network, ways in networks.items()]
    note = f"{_where(values)}. In turns; medians of wall time, in fp32 except where bf16 is named."
    return Table(f"{subject}, every network on a CPU", ("", *titles), rows, note, frozenset({0}))


def networks_table(values: Values, subject: str) -> Table:
    """Every network by every way, in detail; the fastest of one arithmetic is 1.00x."""
    return _table(values, subject, [what for what in values["subjects"][subject] if what not in _WHOLE])


def videos_table(values: Values, subject: str) -> Table:
    return _table(values, subject, [what for what in values["subjects"][subject] if what in _WHOLE])


def _table(values: Values, subject: str, parts: list[str]) -> Table:
    rows = []
    for part in parts:
        ways = values["subjects"][subject][part]
        exact = [figures["cpu_s"] for way, figures in ways.items() if "cpu_s" in figures and not _bf16(way)]
        for way, figures in ways.items():
            rows.append(
                [part, way, *(_cells(figures, min(exact)) if "cpu_s" in figures else _failed(figures))]
            )
    note = (
        f"{_where(values)}. In turns; medians; in fp32 except where bf16 is named. CPU: of all threads, "
        "compared with the least in fp32. Distance: relative L2 to PyTorch eager in fp32."
    )
    header = ("", "by", "time", "CPU", "to the best", "first call", "loading", "peak", "distance")
    return Table(f"{subject}, every way on a CPU", header, rows, note)


def _where(values: Values) -> str:
    versions = values["machine"]["versions"]
    packages = {backend.packages[0]: backend.title for backend in backends_on(None)} | {"torch": "PyTorch"}
    named = ", ".join(f"{title} {versions[name]}" for name, title in packages.items() if name in versions)
    return f"{values['machine']['cpu_threads']} threads of {values['machine']['cpu']}; {named}"


def _time(figures: Mapping[str, Any]) -> str:
    return seconds(figures["wall_s"]) if "wall_s" in figures else "failed"


def _cells(figures: Mapping[str, Any], best: float) -> list[str]:
    return [
        seconds(figures["wall_s"]),
        seconds(figures["cpu_s"]),
        f"{figures['cpu_s'] / best:.2f}x",
        seconds(figures["first_s"]),
        seconds(figures["load_s"]),
        amount(figures["peak_bytes"], "B"),
        small(figures["rel_l2"]) if "rel_l2" in figures else "",
    ]


def _failed(figures: Mapping[str, Any]) -> list[str]:
    return [str(figures["failed"]), *[""] * 6]


def _bf16(way: str) -> bool:
    return way.endswith(", bf16")
