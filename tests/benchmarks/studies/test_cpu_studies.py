# SPDX-License-Identifier: Apache-2.0
"""The studies of full size and of peers on a CPU: what they keep, go on with, and print."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.report.markdown import table_lines
from lamp_trt.benchmarks.studies.cpu_peers import TWO_VIDEOS, VIDEO
from lamp_trt.benchmarks.studies.cpu_peers import __main__ as peers
from lamp_trt.benchmarks.studies.cpu_peers.table import networks_table as peers_table
from lamp_trt.benchmarks.studies.cpu_peers.table import times_table as peers_times
from lamp_trt.benchmarks.studies.cpu_peers.ways import EAGER, loaded, network_ways, outputs_path
from lamp_trt.benchmarks.studies.full_size import __main__ as full_size
from lamp_trt.benchmarks.studies.full_size import parts
from lamp_trt.benchmarks.studies.full_size.table import networks_table, videos_table
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.registry import REFERENCE
from lamp_trt.export.recipe import BuildOptions
from tests.fixtures.openvino import needs_bf16, needs_openvino
from tests.tolerances import FP16_YARDSTICK

MACHINE = {"cpu": "a CPU", "cpu_threads": 2, "versions": {"onnxruntime": "1.2", "torch": "2.3"}}
STEP = {"wall_s": 10.0, "cpu_s": 20.0, "peak_bytes": 5e9, "load_s": 3.0}


def run(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    code: int = module.main()
    return code


def test_a_study_of_full_size_goes_on_with_the_parts_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full_size, "PARTS", {"one": lambda _: {"n": 1}, "two": lambda _: {"n": 2}})
    measured = []

    def measure(folder: Path, part: str) -> None:
        measured.append(part)
        full_size.work(folder, part)

    monkeypatch.setattr(full_size, "measure", measure)
    out = tmp_path / "out.json"
    assert run(monkeypatch, full_size, str(tmp_path / "f"), "--only", "two", "--out", str(out)) == 1
    assert "not measured: one; run it again to go on" in capsys.readouterr().err
    assert json.loads(out.read_text())["parts"] == {"one": None, "two": {"n": 2}}
    assert run(monkeypatch, full_size, str(tmp_path / "f"), "--out", str(out)) == 0
    assert json.loads(out.read_text())["parts"] == {"one": {"n": 1}, "two": {"n": 2}}
    assert measured == ["two", "one"]


def test_the_tables_of_full_size_give_the_share_of_the_measured_rate() -> None:
    figures = {
        "limits": {"fp32": 1e11, "bf16": 2e11},
        "lamp_unet": {**STEP, "backend": "onnxruntime", "flops": 1e12},
        "lamp_unet-pytorch": {**STEP, "rel_l2": 0.0123, "to_fp32": {"ours": 0.011, "pytorch": 0.01}},
        "lamp_unet-fp32": None,
        "sdxl_unet": None,
        "vae_decoder": None,
        "sdxl_vae_decoder": None,
        "video-from-image": {"timings": {"denoise": 10.0, "total": 12.0}, "peak_bytes": 6e9},
        "video-from-text": None,
    }
    values = {"machine": MACHINE, "parts": figures}
    (row,) = networks_table(values).rows
    assert list(row)[:5] == ["a step of the LAMP UNet", "10.0 s", "20 s", "50 %", "5.00 GB"]
    assert list(row)[-2:] == ["1.2e-02", "1.1e-02, 1.0e-02"]
    assert "ONNX Runtime 1.2" in networks_table(values).note
    (video,) = videos_table(values).rows
    assert list(video) == ["from an image", "", "10.0 s", "", "12.0 s", "6.00 GB"]


def test_ways_take_turns_and_are_compared_with_pytorch_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Worker:
        """A way whose network is 1, in bf16 1.5, that was loaded."""

        def __init__(self, folder: Path, subject: str, what: str, way: str) -> None:
            self.title = way
            value = np.array([1.5 if way.endswith("bf16") else 1.0])
            np.savez(outputs_path(folder, subject, what, way), image=value)

        def run(self) -> None:
            order.append(self.title)

        def close(self) -> None:
            order.append("closed")

        def figures(self) -> dict[str, Any]:
            return {**STEP, "first_s": 11.0, "cpu_s": 30.0 if self.title == EAGER else 20.0}

    monkeypatch.setattr(peers, "Worker", Worker)
    (tmp_path / "outputs").mkdir()
    ways = network_ways()
    figures = peers.measure(tmp_path, "toy", "vae_decoder", ways, 0.0, 2)
    assert order == [*ways, *ways, *ways, *["closed"] * len(ways)]
    distances = {way: figures[way].get("rel_l2") for way in ways}
    assert distances.pop(EAGER) is None
    assert all(off == (0.5 if way.endswith("bf16") else 0.0) for way, off in distances.items())
    figures["torch.compile"] = {"failed": "it ended with code 1"}
    values = {"machine": MACHINE, "subjects": {"toy": {"vae_decoder": figures, "video": figures}}}
    table = peers_table(values, "toy")
    lines = "\n".join(table_lines(table))
    assert "| vae_decoder | PyTorch eager | 10.0 s | 30.0 s | 1.50x |" in lines
    assert "it ended with code 1" in lines
    assert len(table.rows) == len(ways)
    (times,) = peers_times(values, "toy").rows
    assert list(times) == ["vae_decoder", *["10.0 s"] * (len(ways) - 1), "failed"]


def test_a_way_that_ends_early_says_why(tmp_path: Path) -> None:
    worker = peers.Worker(tmp_path, "no-such-subject", "vae_decoder", EAGER)
    worker.run()
    worker.close()
    assert "KeyError" in worker.figures()["failed"]


# --- what the parts and ways run, at toy size --------------------------------------------------------------


@needs_openvino
@needs_bf16
@pytest.mark.usefixtures("auto_as_shipped")
def test_parts_measure_networks_pytorch_and_videos(
    toy: Path, sdxl: Path, sdxl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    motions = {"horse_run": toy / "motions" / "horse_run"}
    monkeypatch.setattr(parts, "bundle_path", lambda _: sdxl_bundle)
    monkeypatch.setattr(parts, "whole_options", lambda _: BuildOptions(toy / "sd", motions, sdxl))
    names = ("vae_decoder", "vae_decoder-fp32", "vae_decoder-pytorch")
    ours, _, own = (parts.PARTS[name](tmp_path) for name in names)
    assert ours["flops"] > 0
    assert 0 < ours["wall_s"] <= ours["first_s"]
    assert 1e-4 < own["rel_l2"] < 0.1
    assert 1e-4 < own["to_fp32"]["ours"] <= FP16_YARDSTICK * own["to_fp32"]["pytorch"]
    assert min(ours["peak_bytes"], own["peak_bytes"]) > 1 << 20
    timings = parts.PARTS["video-from-text"](tmp_path)["timings"]
    assert timings["make_first_frame"] > 0
    assert "make_first_frame" not in parts.PARTS["video-from-image"](tmp_path)["timings"]


@pytest.mark.parametrize("what", ["vae_decoder", VIDEO, TWO_VIDEOS])
def test_ways_compute_the_same_network_and_make_videos(
    what: str, toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "toy-checkpoints").symlink_to(toy)
    (tmp_path / "toy-bundle").symlink_to(toy_bundle)
    title = REFERENCE.title
    with loaded(tmp_path, "toy", what, title) as run:
        made = run()
    if what != "vae_decoder":
        assert made is None
        return
    with loaded(tmp_path, "toy", what, EAGER) as run:
        assert distance(made["image"], run()["image"]).rel_l2 < 1e-5
