# SPDX-License-Identifier: Apache-2.0
"""A benchmark as tables of text, which the Markdown and HTML reports format."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lamp_trt.benchmarks.bench.compare import Change
from lamp_trt.benchmarks.bench.entries.memory import CARDS_GB, fits
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.benchmarks.bench.result import BenchResult
from lamp_trt.benchmarks.bench.roofline import ceilings, roofs
from lamp_trt.benchmarks.report.numbers import amount, digits, percent, seconds, small
from lamp_trt.engine.families import LAMP, SDXL

TOP_OPERATORS = 4
EAGER = "PyTorch eager"


@dataclass(frozen=True)
class Table:
    """Table of text cells. left: columns of words, the others hold numbers; anchor: of the figures above
    it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: frozenset[int] = field(default_factory=lambda: frozenset({0, 1}))
    anchor: str = ""


def tables(result: BenchResult) -> list[Table]:
    """Return the tables in the order of a report, without empty ones."""
    everything = [
        changes_table(result),
        times_table(result, "Networks", ("networks", "peers"), "One call; its inputs are in place."),
        speed_up_table(result),
        times_table(result, "Stages and videos", ("stages", "videos"), "Through the public pipeline."),
        times_table(result, "Before the first video", ("start",), "Import and load in fresh processes."),
        roofline_table(result),
        operators_table(result),
        parity_table(result),
        memory_table(result),
        fits_table(result),
        growth_table(result),
        machine_table(result),
    ]
    return [table for table in everything if table.rows]


def times_table(result: BenchResult, title: str, groups: Sequence[str], note: str) -> Table:
    rows = [_times_row(m) for m in result.measurements if m.group in groups]
    header = ("", "backend", "median", "p10–p90", "p99", "cold", "set-up", "CPU time", "calls", "error")
    note += " p10–p90: a tenth of the calls is faster, a tenth slower; unsettled: the budget ended first."
    if any(row[-1] for row in rows):
        note += " Error: relative L2 to PyTorch in fp32."
    return _without_empty_columns(Table(title, header, rows, note.strip(), anchor=groups[0]))


def _without_empty_columns(table: Table) -> Table:
    """Drop empty columns of a table that has words in the first two."""
    kept = [at for at in range(len(table.header)) if at < 2 or any(row[at] for row in table.rows)]
    header = [table.header[at] for at in kept]
    return replace(table, header=header, rows=[[row[at] for at in kept] for row in table.rows])


def _times_row(m: Measurement) -> list[str]:
    calls = str(len(m.samples_s)) + ("" if m.settled else ", unsettled")
    return [
        m.name,
        m.backend,
        seconds(m.median_s),
        f"{seconds(m.percentile_s(10))} – {seconds(m.percentile_s(90))}",
        seconds(m.percentile_s(99)),
        seconds(m.cold_s),
        seconds(m.setup_s),
        "" if m.process_s is None or m.clock != "wall" else seconds(m.process_s),
        calls,
        "" if m.rel_l2 is None else small(m.rel_l2),
    ]


def speed_up_table(result: BenchResult) -> Table:
    """Compare every network that PyTorch ran too with PyTorch eager in the official formulation."""
    rows = []
    for m in result.measurements:
        eager = result.row(m.name, EAGER)
        if m.group in ("networks", "peers") and eager is not None and m is not eager:
            ratio = eager.median_s / m.median_s
            verdict = "faster" if ratio > 1 else "slower"
            rows.append(
                [m.name, m.backend, seconds(m.median_s), seconds(eager.median_s), f"{ratio:.2f}x {verdict}"]
            )
    note = "PyTorch eager runs the official formulation with SDPA; same inputs, same run, in turns."
    return Table("Against PyTorch", ("network", "backend", "median", EAGER, "ratio"), rows, note)


def changes_table(result: BenchResult) -> Table:
    order = {"slower": 0, "faster": 1, "too few samples": 2, "same": 3}
    rows = [_change_row(c) for c in sorted(result.changes, key=lambda c: order[c.verdict])]
    header = ("", "backend", "before", "now", "change", "noise", "verdict")
    note = "A change counts if it exceeds the noise of both runs and the change of the machine's own speed."
    return Table("Changes", header, rows, note, frozenset({0, 1, 6}), "changes")


def _change_row(c: Change) -> list[str]:
    change = f"{100 * (c.ratio - 1):+.1f} %"
    return [
        c.name,
        c.backend,
        seconds(c.old_s),
        seconds(c.new_s),
        change,
        f"± {100 * c.noise:.1f} %",
        c.verdict,
    ]


def roofline_table(result: BenchResult) -> Table:
    work = {m.key: m for m in result.measurements}
    rows = []
    for roof in roofs(result):
        m = work[roof.name, roof.backend]
        rows.append(
            [
                roof.name,
                roof.backend,
                amount(m.flops, "FLOP"),
                amount(m.bytes_moved, "B"),
                seconds(roof.floor_s),
                seconds(roof.seconds),
                percent(roof.share),
                roof.bound,
            ]
        )
    limits = ceilings(result)
    note = ""
    if limits:
        note = (
            f"Measured limits: {amount(limits.flops, 'FLOP/s')} (matrix product), "
            f"{amount(limits.bytes_moved, 'B/s')} (copy). Floor: the longer of work over either. Share: "
            "floor over measured. A multiply-add is 2 FLOP. Bytes: weights, inputs, outputs, each once."
        )
    header = ("network", "backend", "work", "least traffic", "floor", "measured", "share", "bound by")
    return Table("Roofline", header, rows, note, frozenset({0, 1, 7}), "roofline")


def operators_table(result: BenchResult) -> Table:
    rows = []
    for network, operators in result.operators.items():
        total = sum(operators.values())
        for name, spent in list(operators.items())[:TOP_OPERATORS]:
            rows.append([network, name, seconds(spent), percent(spent / total)])
    note = f"By ONNX Runtime's profiler: the {TOP_OPERATORS} slowest of each network, fused ones included."
    return Table(
        "Where the time goes", ("network", "operator", "time", "share"), rows, note, anchor="operators"
    )


def parity_table(result: BenchResult) -> Table:
    rows = [_parity_row(check) for check in result.parity.get("checks", [])]
    header = ("", "check", "verdict", "measured", "limit", "PyTorch's own")
    note = (
        "Results of lamp-trt verify, against PyTorch in fp32. PyTorch's own: its distance at the bundle's "
        "precision, the yardstick for fp16 and bf16. Values that are not finite fail."
    )
    words = frozenset({0, 1, 2, 3, 4, 5})
    return _without_empty_columns(Table("Parity with PyTorch", header, rows, note, words, "parity"))


def _parity_row(check: dict[str, Any]) -> list[str]:
    title = f"{check['name']}, {check['motion']}" if check["motion"] else check["name"]
    verdict = "ok" if check["passed"] else f"failed: {check['problem']}"
    measured, limits, own = (_figures(check[name]) for name in ("measured", "limits", "own"))
    return [check["group"], title, verdict, measured, limits, own]


def _figures(values: dict[str, Any]) -> str:
    if "psnr_db" in values:
        decibel = values["psnr_db"]
        text = "equal" if decibel is None else f"PSNR {decibel:.1f} dB"
        return text + (f", SSIM {values['ssim']:.5f}" if "ssim" in values else "")
    if "rel_l2" in values:
        text = f"L2 {small(values['rel_l2'])}"
        if values.get("cosine") is not None:
            text += f", cosine {values['cosine']:.7f}"
        return text
    return ", ".join(f"{number} {name}" for name, number in values.items())


def memory_table(result: BenchResult) -> Table:
    columns = ("weights", "arrays", "scratch", "loaded", "peak")
    rows = [
        [name, *("" if parts.get(c) is None else amount(float(parts[c] or 0), "B") for c in columns)]
        for name, parts in result.memory.items()
    ]
    note = "Loaded, peak: memory of a process that runs only this network, beyond its libraries (CPU)."
    table = Table("Memory", ("network", *columns), rows, note, frozenset({0}), "memory")
    return _without_empty_columns(table)


def fits_table(result: BenchResult) -> Table:
    answers = {True: "yes", False: "no", None: "not measured"}
    rows = [
        [
            fit.use,
            "not measured" if fit.need is None else amount(fit.need, "B"),
            *(answers[fit.on(card)] for card in CARDS_GB),
        ]
        for fit in fits(result.subject.get("uses", {}), result.memory)
    ]
    note = "From measured weights, arrays and scratch only; engines on one stream share the largest scratch."
    return Table("What fits", ("", "needs", *(f"{card} GB" for card in CARDS_GB)), rows, note, frozenset({0}))


def growth_table(result: BenchResult) -> Table:
    rows = [
        [
            point["axis"],
            point["label"],
            seconds(point["seconds"]),
            amount(point["peak_bytes"], "B"),
            amount(point["flops"], "FLOP"),
            amount(point["flops"] / point["seconds"], "FLOP/s"),
        ]
        for point in result.growth
    ]
    header = ("varied", "", "a step's UNet", "peak memory", "work", "speed")
    return Table("Growth", header, rows, "The fastest of three runs in a fresh process.", anchor="growth")


def machine_table(result: BenchResult) -> Table:
    facts = {name: value for name, value in result.machine.items() if name != "versions"}
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in result.machine["versions"].items())
    for name, before in result.state_before.items():
        facts[f"{name}, before and after"] = f"{before} → {result.state_after.get(name)}"
    facts["bundle"] = result.subject["bundle"]
    facts["precision"] = ", ".join(sorted(set(result.subject["networks"].values())))
    facts["measured in"] = f"{digits(result.seconds)} s, budget {digits(result.settings['budget_s'])} s"
    rows = [[name.replace("_", " "), str(value)] for name, value in facts.items()]
    return Table("Machine and programs", ("", ""), rows)


def headline(result: BenchResult) -> list[tuple[str, str, str]]:
    """Return the main figures as (label, value, explanation)."""
    figures = []
    roof = {(r.name, r.backend): r for r in roofs(result)}
    for m in result.measurements:
        if m.group == "networks" and m.name in (LAMP.unet, SDXL.unet):
            under = roof.get(m.key)
            share = f"{percent(under.share)} of the machine's limit" if under else ""
            figures.append((f"{m.name}, {m.backend}", seconds(m.median_s), share))
    for m in result.measurements:
        if m.group == "videos":
            figures.append((m.name, seconds(m.median_s), m.backend))
    if result.parity:
        checks = result.parity["checks"]
        passed = sum(check["passed"] for check in checks)
        figures.append(("parity with PyTorch", f"{passed} of {len(checks)}", "checks passed"))
    slower = [c for c in result.changes if c.verdict == "slower"]
    if result.changes:
        figures.append(
            ("slower than before", f"{len(slower)} of {len(result.changes)}", "rows beyond the noise")
        )
    return figures


def title(result: BenchResult) -> str:
    sizes = result.subject["sizes"]
    what = (
        f"{sizes['width']}x{sizes['height']}, {sizes['num_frames']} frames"
        if "num_frames" in sizes
        else "bundle"
    )
    return f"lamp-trt on {result.machine.get('gpu', result.machine['cpu'])}: {what}"
