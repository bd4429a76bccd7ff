# SPDX-License-Identifier: Apache-2.0
"""The report of the proofs, and what comes back within a lent machine's limits."""

import io
import json
import tarfile
from pathlib import Path

from lamp_trt.benchmarks.proof.commands.command import main
from lamp_trt.benchmarks.proof.commands.outcomes import Outcome, PartReport
from lamp_trt.benchmarks.proof.results.gather import gathered
from lamp_trt.benchmarks.proof.results.pack import Limits, put
from lamp_trt.benchmarks.proof.results.page import tables
from lamp_trt.export.candidates.registry import CANDIDATES, SETTINGS

FACTS = {"gpu": "NVIDIA H200", "commit": "abc", "torch": "2.11.0"}


def write(folder: Path, part: str, *outcomes: Outcome) -> None:
    report = PartReport.open(folder / f"{part}-proof-h200.json", FACTS)
    for outcome in outcomes:
        report.ended(outcome, {"aotinductor": {"step_ms": 55.1}})


def test_a_report_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results / "prepare-lamp_unet", "prepare", Outcome("compiled", "passed", "lamp_unet-1.pt2", 301.0))
    write(results / "prepare-whole", "prepare", Outcome("all compiled", "cut off", "its time was spent"))
    write(
        results,
        "unet",
        Outcome("it is | near", "passed", '{"step_ms": 55.1}', 12.0),
        Outcome("<it> switches", "failed", "AssertionError: wrong", 1.0, "Traceback (most recent call last)"),
        Outcome("it fits", "skipped", "TensorRT is not installed"),
    )
    (results / "peers-proof-h200.json").write_text("{ half a file")
    assert main(["report", "--folder", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    heading = "# Proofs on NVIDIA H200\n\n2 passed, 1 failed, 1 skipped, 1 cut off, 8 not run · commit abc"
    assert text.startswith(heading)
    assert "| unet | it fits | skipped | TensorRT is not installed |" in text
    assert "| prepare | all compiled | cut off | its time was spent |" in text
    assert "| peers | peers | not run | the part was not started, or left no report |" in text
    assert "it is \\| near | passed | 12.0" in text
    assert "Traceback" not in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;it&gt; switches" in page
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert rows[2]["checks"][1]["detail"].startswith("Traceback")
    assert rows[2]["figures"] == {"aotinductor": {"step_ms": 55.1}}


def test_every_layer_form_has_a_row_with_its_time_or_without(tmp_path: Path) -> None:
    def rows() -> list[str]:
        (table,) = [
            table for table in tables(gathered(tmp_path)) if table.title == "Layer forms and settings"
        ]
        assert [row[:2] for row in table.rows] == [
            *((form.slot, form.name) for form in CANDIDATES),
            *((setting.name, value) for setting in SETTINGS for value in ("off", "on")),
        ]
        return [" ".join(row[3:]) for row in table.rows]

    titles = [
        *(form.title for form in CANDIDATES),
        *(setting.title(on) for setting in SETTINGS for on in (False, True)),
    ]
    assert rows() == ["not measured "] * len(titles)
    report = PartReport.open(tmp_path / "candidates-proof-h200.json", FACTS)
    times = {"gate=convolution": 5.0, "gate=taps": 1.25, "norm_silu=folded": 2.0, "conv_as_mm=off": 2.0}
    times |= {"conv_as_mm=on": 1.0, "cudnn_benchmark=on": 3.0}
    report.ended(Outcome("gate", "passed", ""), {"candidates": times})
    by_title = dict(zip(titles, rows(), strict=True))
    assert by_title["gate=convolution"] == "5.000 1.000"
    assert by_title["gate=taps"] == "1.250 0.250"
    assert by_title["norm_silu=folded"] == "2.000 "
    assert (by_title["conv_as_mm=off"], by_title["conv_as_mm=on"]) == ("2.000 1.000", "1.000 0.500")
    assert by_title["cudnn_benchmark=on"] == "3.000 "
    assert by_title["gate=triton"] == by_title["norm_silu=native"] == "not measured "


def test_a_check_that_was_killed_is_cut_off(tmp_path: Path) -> None:
    PartReport.open(tmp_path / "unet-proof-h200.json", FACTS).started("it loads", {})
    (unet,) = [result for result in gathered(tmp_path) if result.part == "unet"]
    assert [(o.claim, o.result) for o in unet.outcomes] == [("it loads", "cut off")]


def test_few_files_and_none_too_large_come_back(tmp_path: Path) -> None:
    engines, logs, out = tmp_path / "engines", tmp_path / "logs", tmp_path / "out"
    engines.mkdir()
    logs.mkdir()
    (logs / "unet.txt").write_text("a line\n" * 100_000)
    (engines / "lamp_unet-1.pt2").write_bytes(bytes(2500))
    (engines / "lamp_unet-1.json").write_text("{}")
    (engines / "half.pt2.0f.tmp").write_bytes(bytes(2500))
    texts = {"report.md": "short", "results.json": "x" * 5000}
    left_out = put(out, texts, logs, engines, Limits(8, 4000))
    assert left_out == ["results.json: 5000 bytes, at most 4000 come back"]
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert max(map(len, files.values())) <= 4000
    pieces = b"".join(files[name] for name in sorted(files) if name.startswith("engines.tar."))
    with tarfile.open(fileobj=io.BytesIO(pieces)) as archive:
        assert archive.getnames() == ["lamp_unet-1.json", "lamp_unet-1.pt2"]
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert archive.getmember("unet.txt").size == 200_000
    left_out = put(out, {"report.md": "short"}, logs, engines, Limits(2, 4000))
    assert left_out == ["engines: 3 pieces, there is room for 0"]
    assert {path.name for path in out.iterdir()} == {"report.md", "logs.tar.gz"}
