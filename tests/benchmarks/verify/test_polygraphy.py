# SPDX-License-Identifier: Apache-2.0
"""Bundles in Polygraphy, as they are: its command line reads our graphs, and is fed with our inputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.benchmarks.verify.polygraphy_inputs import network_inputs
from lamp_trt.cli import main
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle

POLYGRAPHY = Path(sys.executable).with_name("polygraphy")
PROMPT = "a horse runs on the road"


def polygraphy(*arguments: object, rtx: bool = False) -> str:
    """What the command prints; it must succeed."""
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0"}
    command = [sys.executable, str(POLYGRAPHY), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("network", ["text_encoder", "vae_encoder"])
def test_polygraphy_runs_a_graph_on_our_inputs_to_our_outputs(
    network: str, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    feed, results = tmp_path / "inputs.json", tmp_path / "outputs.json"
    assert main(["inspect", str(toy_bundle), "--inputs", network, "--out", str(feed), "--json"]) == 0
    bundle = Bundle.open(toy_bundle)
    inputs = network_inputs(bundle, network, PROMPT)
    assert json.loads(capsys.readouterr().out) == {
        "path": str(feed),
        "inputs": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in inputs.items()},
    }
    (fed,) = load_json(str(feed))
    assert {name: array.dtype for name, array in fed.items()} == {n: a.dtype for n, a in inputs.items()}
    graph = bundle.graph_path(network)
    polygraphy("run", graph, "--onnxrt", "--load-inputs", feed, "--save-outputs", results)
    ((_, (theirs,)),) = RunResults.load(str(results))
    for name, ours in OnnxRuntimeEngine(bundle, network).run(inputs).items():
        assert distance(np.asarray(theirs[name]), ours).rel_l2 <= 1e-5


def test_polygraphy_shows_a_graph_with_its_inputs_and_outputs(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    shown = polygraphy("inspect", "model", bundle.graph_path("lamp_unet"))
    for tensor in (*bundle.network("lamp_unet").inputs, *bundle.network("lamp_unet").outputs):
        assert tensor.name in shown
    nodes = len(onnx.load(bundle.graph_path("lamp_unet"), load_external_data=False).graph.node)
    assert f"{nodes} Node" in shown


@pytest.mark.parametrize("network", ["text_encoder", "vae_decoder", "lamp_unet"])
def test_polygraphy_finds_that_tensorrt_takes_a_graph(network: str, toy_bundle: Path) -> None:
    graph = Bundle.open(toy_bundle).graph_path(network)
    assert "Graph is fully supported by TensorRT" in polygraphy("inspect", "capability", graph, rtx=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "lamp_unet"], "belong together"),
        (["--out", "x.json"], "belong together"),
        (["--inputs", "lamp_unet", "--out", "nowhere/x.json"], "nowhere is not a folder"),
        (["--inputs", "mystery", "--out", "x.json"], "mystery"),
    ],
)
def test_inputs_that_cannot_be_written_are_refused(
    arguments: list[str],
    message: str,
    toy_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(toy_bundle), *arguments]) != 0
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
