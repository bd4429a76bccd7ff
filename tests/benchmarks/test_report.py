# SPDX-License-Identifier: Apache-2.0
"""Reports of a benchmark: what is in the JSON is what the pages say, and they need nothing else."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from lamp_trt.benchmarks.bench.compare import RULER, Change, Verdict
from lamp_trt.benchmarks.bench.contact_sheet import AMPLIFICATION, MOST_FRAMES, contact_sheet, sheet_png
from lamp_trt.benchmarks.bench.entries.ceilings import COPY
from lamp_trt.benchmarks.bench.entries.memory import Fit, fits
from lamp_trt.benchmarks.bench.entries.sweeps import points
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.benchmarks.bench.options import BenchOptions, budget_seconds
from lamp_trt.benchmarks.bench.result import BenchResult, read_result, result_text
from lamp_trt.benchmarks.bench.roofline import ceilings, roofs
from lamp_trt.benchmarks.report import numbers
from lamp_trt.benchmarks.report.html import page
from lamp_trt.benchmarks.report.markdown import markdown, table_lines
from lamp_trt.benchmarks.report.svg import Scale
from lamp_trt.benchmarks.report.tables import changes_table, speed_up_table, tables
from lamp_trt.benchmarks.studies import readme_tables
from lamp_trt.benchmarks.studies.cpu_tables import unet_cpu_table
from lamp_trt.engine.backends.onnxruntime.profile import seconds_by_operator
from lamp_trt.engine.errors import InputError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "lean.md"]
HOSTILE = "<script>alert('&')</script> | x"


def measurement(name: str, group: str, backend: str, median: float, **fields: Any) -> Measurement:
    samples = tuple(median * factor for factor in (0.9, 0.95, 1.0, 1.05, 1.2))
    plain = {"name": name, "group": group, "backend": backend, "setup_s": 1.0, "settled": False}
    return Measurement(**{**plain, "samples_s": samples, "cold_s": 2 * median, **fields})


def step(number: int) -> dict[str, Any]:
    error = {"rel_l2": 1e-5 * (1 + number), "max_abs": 1e-4, "cosine": 1.0, "finite": True}
    return {"step": number, "timestep": 981 - number, "free_running": error, "teacher_forced": error}


@pytest.fixture
def result() -> BenchResult:
    """Every part of a report filled."""
    clip = np.full((2, 16, 16, 3), 100, np.uint8)
    check = {"group": "clip", "name": "frames", "motion": "rain", "passed": False, "problem": HOSTILE}
    return BenchResult(
        machine={
            "cpu": "Testor 9000",
            "cpu_threads": 2,
            "commit": "0123456789abcdef",
            "date": "2026-11-24",
            "versions": {"numpy": "2.0"},
        },
        subject={
            "bundle": "ab" * 32,
            "sizes": {"height": 320, "width": 512, "num_frames": 16},
            "networks": {"lamp_unet": "fp32"},
            "motions": {"rain": 5},
            "bytes": 9,
            "uses": {"video from an image": {"networks": ["a", "b"], "weights": 3 * 10**9, "arrays": 10**6}},
        },
        settings={"budget_s": 60.0},
        state_before={"cpu_mhz": 2000},
        state_after={"cpu_mhz": 2100},
        measurements=[
            measurement(RULER, "ceilings", "NumPy", 0.01, flops=10**9),
            measurement(RULER, "ceilings", "ONNX Runtime", 0.005, flops=10**9),
            measurement(COPY, "ceilings", "NumPy", 0.1, bytes_moved=10**9),
            measurement("lamp_unet", "networks", "onnxruntime", 0.5, flops=5 * 10**10, bytes_moved=10**8),
            measurement("lamp_unet", "peers", "PyTorch eager", 1.0, flops=5 * 10**10, bytes_moved=10**8),
            measurement("video", "videos", "onnxruntime", 2.0, parts={"text": 0.5, "denoise": 1.5}),
            measurement(HOSTILE, "stages", "NumPy", 1e-5, rel_l2=1e-6, reference="NumPy"),
        ],
        operators={"lamp_unet": {"Conv": 0.3, "MatMul": 0.1, HOSTILE: 0.1}},
        memory={
            "a": {"weights": 10**9, "arrays": 10**6, "scratch": 10**8},
            "b": {"weights": 2 * 10**9, "arrays": 10**6, "scratch": 10**9},
        },
        growth=[
            {"axis": "frames", "label": f"{n} frames", "seconds": n, "peak_bytes": n, "flops": n}
            for n in (8, 16)
        ],
        parity={
            "checks": [
                {**check, "measured": {"psnr_db": 40.0, "ssim": 0.9}, "own": {}, "limits": {"psnr_db": 50.0}}
            ],
            "steps": {"rain": [step(n) for n in range(3)]},
        },
        sheets={"rain": sheet_png(clip, clip)},
        not_measured=[HOSTILE],
        changes=[Change("lamp_unet", "onnxruntime", 0.4, 0.5, 0.05, "slower")],
        history=[{"commit": "fedcba", "date": "2026-11-01", "medians": [["lamp_unet", "onnxruntime", 0.4]]}],
        seconds=12.0,
    )


# --- JSON ------------------------------------------------------------------------------------------------


def test_results_survive_their_file(result: BenchResult, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(result_text(result))
    again = read_result(path)
    assert again == result
    assert result_text(again) == result_text(result)


def test_the_file_holds_the_statistics(result: BenchResult) -> None:
    rows = json.loads(result_text(result))["measurements"]
    unet = next(row for row in rows if row["name"] == "lamp_unet")
    assert unet["median_s"] == 0.5
    assert unet["p10_s"] == pytest.approx(0.46)
    assert unet["p90_s"] == pytest.approx(0.57)
    assert unet["p99_s"] == pytest.approx(0.597)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"bench_version": 99}', '{"bench_version": 1, "machine": 3}', "\x00"]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"old\.json holds no results of lamp-trt bench"):
        read_result(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path / "none.json")


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("90s", 90), ("1.5m", 90), ("1h", 3600)])
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1d", "nan", "1 s", "1e9s"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a time like 60s"):
        budget_seconds(text)


def test_a_sweep_needs_a_motion() -> None:
    with pytest.raises(InputError, match="--motion NAME=DIR"):
        BenchOptions(sweep=True)


# --- figures that are computed ---------------------------------------------------------------------------


def test_the_roofline_takes_the_best_ceiling_and_the_longer_floor(result: BenchResult) -> None:
    limits = ceilings(result)
    assert limits is not None
    assert (limits.flops, limits.bytes_moved, limits.ridge) == (2e11, 1e10, 20)
    ours, eager = roofs(result)
    assert (ours.floor_s, ours.share, ours.bound, ours.intensity) == (0.25, 0.5, "arithmetic", 500)
    assert eager.share == 0.25
    result.measurements[3] = measurement("n", "networks", "b", 1.0, flops=10**9, bytes_moved=10**9)
    slow = roofs(result)[0]
    assert (slow.floor_s, slow.bound) == (0.1, "memory")


def test_without_ceilings_there_is_no_roofline(result: BenchResult) -> None:
    result.measurements = [m for m in result.measurements if m.name != COPY]
    assert ceilings(result) is None
    assert roofs(result) == []


def test_losses_are_shown_like_wins(result: BenchResult) -> None:
    (won,) = speed_up_table(result).rows
    assert won[-1] == "2.00x faster"
    result.measurements[3] = measurement("lamp_unet", "networks", "onnxruntime", 2.0)
    (lost,) = speed_up_table(result).rows
    assert lost[-1] == "0.50x slower"


def test_what_became_slower_is_shown_first() -> None:
    verdicts: tuple[Verdict, ...] = ("same", "too few samples", "faster", "slower")
    changes = [Change(verdict, "onnxruntime", 1.0, 1.0, 0.05, verdict) for verdict in verdicts]
    rows = changes_table(SimpleNamespace(changes=changes)).rows  # type: ignore[arg-type]
    assert [row[-1] for row in rows] == ["slower", "faster", "too few samples", "same"]


def test_what_fits_counts_the_largest_scratch_once(result: BenchResult) -> None:
    (fit,) = fits(result.subject["uses"], result.memory)
    assert fit.need == 3 * 10**9 + 10**6 + 10**9
    assert [fit.on(card) for card in (4, 8)] == [False, True]


def test_nothing_fits_unmeasured(result: BenchResult) -> None:
    result.memory["b"]["scratch"] = None
    (fit,) = fits(result.subject["uses"], result.memory)
    assert fit == Fit("video from an image", None)
    assert fit.on(80) is None


def test_operators_are_summed_over_nodes_and_averaged_over_runs() -> None:
    def event(name: str, op: str, microseconds: int, category: str = "Node") -> dict[str, object]:
        return {
            "cat": category,
            "name": name,
            "dur": microseconds,
            "args": {"op_name": op, "node_index": name},
        }

    runs = [(900, 9), (10, 4), (20, 6)]  # the first is the warm-up
    events = [
        e for a, b in runs for e in (event("c1_kernel_time", "Conv", a), event("m_kernel_time", "Mul", b))
    ]
    events += [event("c1_fence_before", "Conv", 5000), event("model_run", "", 1, "Session")]
    seconds = seconds_by_operator(events, warm_up=1, runs=2)
    assert list(seconds) == ["Conv", "Mul"]
    assert list(seconds.values()) == pytest.approx([15e-6, 5e-6])


def test_a_sweep_varies_one_thing_at_a_time() -> None:
    axes = {(p.axis, p.num_frames, p.height, p.width, p.precision) for p in points(320, 512, 16, "fp32")}
    assert {("frames", 24, 320, 512, "fp32"), ("precision", 16, 320, 512, "fp16")} <= axes
    assert {(h, w) for axis, _, h, w, _ in axes if axis == "size"} == {(128, 256), (256, 384), (320, 512)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(123.4, "2.1 min"), (1.234, "1.23 s"), (0.0456, "45.6 ms"), (1.5e-5, "15.0 µs"), (3e-8, "0.0300 µs")],
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert numbers.seconds(value) == text


def test_amounts_have_prefixes() -> None:
    assert numbers.amount(19.404e12, "FLOP") == "19.4 TFLOP"
    assert numbers.amount(507_870_000, "B") == "508 MB"
    assert numbers.percent(0.1234) == "12 %"
    assert numbers.percent(0.012) == "1.2 %"


def test_a_sheet_shows_both_clips_and_their_difference() -> None:
    expected = np.full((20, 8, 10, 3), 100, np.uint8)
    actual = expected.copy()
    actual[-1, 2, 3] += 2
    sheet = contact_sheet(expected, actual)
    assert sheet.shape == (3 * 8, MOST_FRAMES * 10, 3)
    assert (sheet[:8] == 100).all()
    assert sheet[8 + 2, -10 + 3, 0] == 102
    difference = sheet[16:]
    assert difference[2, -10 + 3, 0] == 2 * AMPLIFICATION
    assert np.count_nonzero(difference) == 3


def test_a_wide_clip_is_reduced_without_losing_a_difference() -> None:
    expected = np.zeros((1, 320, 512, 3), np.uint8)
    actual = expected.copy()
    actual[0, 100, 100] = 1
    sheet = contact_sheet(expected, actual)
    assert sheet.shape == (3 * (320 // 3), 512 // 3, 3)
    assert sheet[2 * (320 // 3) :].max() == AMPLIFICATION


# --- pages -----------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Whether tags are balanced, and what the page asks for."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.wanted: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.wanted += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(result: BenchResult) -> None:
    html = page(result)
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    assert [want[:22] for want in checker.wanted] == ["data:image/png;base64,"]
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_every_figure_is_drawn_and_well_formed(result: BenchResult) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page(result), re.DOTALL)
    titles = [ET.fromstring(svg)[0].text or "" for svg in drawings]
    for words in (
        "Scatter",
        "video:",
        "Roofline",
        "Shares",
        "Changes",
        "over commits",
        "every step",
        "Time and peak",
    ):
        assert any(words in title for title in titles), (words, titles)
    for svg in drawings:
        root = ET.fromstring(svg)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for mark in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(mark.attrib["cx"]) <= width
            assert 0 <= float(mark.attrib["cy"]) <= height


def test_names_are_escaped(result: BenchResult) -> None:
    assert "<script>" not in page(result)
    assert "\\| x" in markdown(result)


def test_the_sheet_is_an_image(result: BenchResult) -> None:
    found = re.search(r"data:image/png;base64,([^\"]+)", page(result))
    assert found
    image = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (48, 32, 3)


def test_both_pages_show_every_table_of_the_result(result: BenchResult) -> None:
    html, text = page(result), markdown(result)
    titles = [table.title for table in tables(result)]
    assert titles == [
        "Changes",
        "Networks",
        "Against PyTorch",
        "Stages and videos",
        "Roofline",
        "Where the time goes",
        "Parity with PyTorch",
        "Memory",
        "What fits",
        "Growth",
        "Machine and programs",
    ]
    for title in titles:
        assert f"<h2>{title}</h2>" in html
        assert f"\n## {title}\n" in text
    assert "500 ms" in html
    assert "500 ms" in text


def test_axes_have_round_ticks() -> None:
    assert Scale(0, 10, 0, 100).ticks() == [0, 2, 4, 6, 8, 10]
    assert Scale(0.9, 110, 0, 100, log=True).ticks() == [1, 10, 100]
    assert Scale(1, 100, 0, 100, log=True)(10) == pytest.approx(50)


# --- tables in the documents -----------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_in_the_documents_are_those_of_the_committed_results(document: Path) -> None:
    text = document.read_text()
    assert readme_tables.filled(text) == text, "python -m lamp_trt.benchmarks.studies.readme_tables " + str(
        document
    )


def test_a_table_is_filled_in_and_the_rest_is_left() -> None:
    text = "before\n<!-- table: unet-cpu -->\nold\n<!-- end of table -->\nafter\n"
    filled = readme_tables.filled(text)
    values = json.loads((readme_tables.RESULTS / "unet-cpu-2-core-epyc.json").read_text())
    lines = table_lines(unet_cpu_table(values))
    assert filled.startswith("before\n<!-- table: unet-cpu -->\n")
    assert filled.endswith("\n".join(lines) + "\n<!-- end of table -->\nafter\n")
    assert f"{values['speedup_over_official']:.2f}x" in filled
    assert "old" not in filled
    assert readme_tables.filled(filled) == filled


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(InputError, match="no table 'x'"):
        readme_tables.filled("<!-- table: x -->\n<!-- end of table -->")
