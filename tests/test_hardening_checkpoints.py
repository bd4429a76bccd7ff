# SPDX-License-Identifier: Apache-2.0
"""Hostile checkpoints: configs that would build monsters, pickles that would run, links elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile import as_json, mutated, read_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torture_fixture import Tally, no_hang
from toy_fixture import toy_options

from lamp_trt.engine.digests import DigestCache
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoint_files import find_component
from lamp_trt.export.networks import check_component
from lamp_trt.export.recipe import recipe_from_options

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")
COMPONENTS = {"unet": "motions/rain/unet", "vae": "sd/vae", "text_encoder": "sd/text_encoder"}


@pytest.fixture(scope="module")
def checkpoints(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy checkpoints; each test puts back what it changes."""
    copy = tmp_path_factory.mktemp("hostile") / "toy"
    shutil.copytree(toy, copy)
    return copy


@pytest.mark.parametrize("component", COMPONENTS)
@settings(FUZZ, max_examples=FUZZ.max_examples // 10)
@given(data=st.data())
def test_any_config_builds_what_the_weights_hold_or_is_refused(
    checkpoints: Path, toy: Path, component: str, tally: Tally, data: st.DataObject
) -> None:
    path = checkpoints / COMPONENTS[component] / "config.json"
    config = json.loads((toy / COMPONENTS[component] / "config.json").read_text())
    path.write_bytes(as_json(mutated(config, data)))
    read_or_refused(lambda: check_component(find_component(path.parent, component)), tally)


@pytest.mark.parametrize("file", [*(f"{folder}/config.json" for folder in COMPONENTS.values()),
                                  "sd/scheduler/scheduler_config.json", "sd/model_index.json"])  # fmt: skip
@settings(FUZZ, max_examples=FUZZ.max_examples // 3)
@given(data=st.data())
def test_any_config_gives_a_recipe_or_is_refused(
    checkpoints: Path, toy: Path, file: str, tally: Tally, data: st.DataObject
) -> None:
    original = (toy / file).read_bytes()
    (checkpoints / file).write_bytes(as_json(mutated(json.loads(original), data)))
    cache = DigestCache(checkpoints.parent / "digests")

    def read() -> None:
        recipe = recipe_from_options(toy_options(checkpoints), cache)
        for network in recipe.networks:
            assert all(0 < axis < 2**31 for tensor in recipe.io(network)[0] for axis in tensor.shape)

    try:
        read_or_refused(read, tally)
    finally:
        (checkpoints / file).write_bytes(original)


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"block_out_channels": [2**30] * 4}),
        ("unet", {"cross_attention_dim": 2**31}),
        ("vae", {"layers_per_block": 2**31 - 1}),
        ("vae", {"block_out_channels": [16] * 100_000}),
        ("vae", {"latent_channels": 0}),
        ("text_encoder", {"num_hidden_layers": 10**8}),
        ("text_encoder", {"vocab_size": 2**31 - 1}),
        ("text_encoder", {"hidden_size": 2**62}),
        ("text_encoder", {"max_position_embeddings": -1}),
    ],
    ids=str,
)
def test_networks_larger_than_any_are_refused_before_they_are_built(
    component: str, change: dict[str, Any], checkpoints: Path, toy: Path, tally: Tally
) -> None:
    folder = checkpoints / COMPONENTS[component]
    config = json.loads((toy / COMPONENTS[component] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with no_hang(), pytest.raises(CheckpointError, match=f"config.json: {next(iter(change))} is"):
        find_component(folder, component)
