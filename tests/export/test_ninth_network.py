# SPDX-License-Identifier: Apache-2.0
"""A network that a family's record adds is built like the others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.engine.networks import Family
from lamp_trt.export import networks
from lamp_trt.export.build import build_bundle
from lamp_trt.export.recipe import recipe_from_options
from tests.fixtures.toy import toy_options

WIDTH = 6
WEIGHTS = {
    "weight": np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH) / 10,
    "bias": np.array([1, 2, 3], np.float32),
}


class Checker(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_embeds: Tensor) -> Tensor:
        cosines: Tensor = self.model(image_embeds)
        return cosines


@pytest.fixture
def checker(ninth_network: Family, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of NINTH's network, which torch can make."""
    monkeypatch.setitem(networks.WRAPPERS, "quality_checker", Checker)
    monkeypatch.setitem(
        networks.MODULES, "quality_checker", lambda config: nn.Linear(config["hidden_size"], 3)
    )
    return ninth_network.names[0]


@pytest.fixture
def sd(toy: Path, tmp_path: Path) -> Path:
    """The toy's Stable Diffusion with a quality checker, in files named as transformers names them."""
    folder = Path(shutil.copytree(toy / "sd", tmp_path / "sd"))
    (folder / "quality_checker").mkdir()
    (folder / "quality_checker" / "config.json").write_text(json.dumps({"hidden_size": WIDTH}))
    save_file(WEIGHTS, folder / "quality_checker" / "model.safetensors")
    return folder


def test_a_registered_network_is_built_and_runs(checker: str, toy: Path, sd: Path, tmp_path: Path) -> None:
    options = toy_options(toy, sd=sd, motions=None, only=(checker,))
    report = build_bundle(tmp_path / "bundle", options)
    assert [file.path for file in report.files] == [
        "weights/quality_checker.safetensors",
        "quality_checker.onnx",
    ]
    bundle = Bundle.open(tmp_path / "bundle", verify="full")
    entry = bundle.network(checker)
    assert [(t.name, t.shape) for t in entry.inputs] == [("image_embeds", (2, WIDTH))]
    assert [(t.name, t.shape) for t in entry.outputs] == [("cosines", (2, 3))]
    assert bundle.manifest.sizes["checker_width"] == WIDTH
    given = np.random.default_rng(0).standard_normal((2, WIDTH), np.float32)
    cosines = OnnxRuntimeEngine(bundle, checker).run({"image_embeds": given})["cosines"]
    np.testing.assert_allclose(cosines, given @ WEIGHTS["weight"].T + WEIGHTS["bias"], rtol=1e-6)
    again = build_bundle(tmp_path / "bundle", options)
    assert [file.seconds for file in again.files] == [None, None]


def test_an_optional_component_is_built_where_the_checkpoint_has_it(
    checker: str, toy: Path, sd: Path
) -> None:
    without = recipe_from_options(toy_options(toy))
    assert without.networks == VIDEO_NETWORKS
    assert recipe_from_options(toy_options(toy, sd=sd)).networks == (*VIDEO_NETWORKS, checker)
    with pytest.raises(CheckpointError, match="is not a checkpoint with 'quality_checker'"):
        recipe_from_options(toy_options(toy, only=(checker,)))


def test_torch_makes_the_module_of_the_record(checker: str) -> None:
    module = networks.empty_network(checker, "quality_checker", {"hidden_size": WIDTH}, torch.float16)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "model.weight": (3, WIDTH),
        "model.bias": (3,),
    }
