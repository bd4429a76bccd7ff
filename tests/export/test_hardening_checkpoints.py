# SPDX-License-Identifier: Apache-2.0
"""Hostile checkpoints: configs that would build monsters, pickles that would run, links elsewhere."""

import functools
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, CheckpointError
from lamp_trt.export.checkpoints.files import find_component
from lamp_trt.export.networks import check_component
from lamp_trt.export.recipe import recipe_from_options
from tests.fixtures.hostile import as_json, mutated, read_or_refused
from tests.fixtures.torture import Tally, no_hang
from tests.fixtures.toy import toy_options

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")
COMPONENTS = {"unet": "motions/rain/unet", "vae": "sd/vae", "text_encoder": "sd/text_encoder"}


@pytest.fixture(scope="module")
def checkpoints(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy checkpoints, whose JSON files every test gets as published."""
    copy = tmp_path_factory.mktemp("hostile") / "toy"
    shutil.copytree(toy, copy)
    return copy


@pytest.fixture(autouse=True)
def published(checkpoints: Path, toy: Path) -> None:
    for path in toy.rglob("*.json"):
        shutil.copy(path, checkpoints / path.relative_to(toy))


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
    document = json.loads((toy / file).read_text())
    (checkpoints / file).write_bytes(as_json(mutated(document, data)))
    cache = DigestCache(checkpoints.parent / "digests")

    def read() -> None:
        recipe = recipe_from_options(toy_options(checkpoints), cache)
        for network in recipe.networks:
            assert all(0 < axis < 2**31 for tensor in recipe.io(network)[0] for axis in tensor.shape)

    read_or_refused(read, tally)


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


# --- pickles -------------------------------------------------------------------------------------------


class _Calls:
    """A pickle that calls `function(*arguments)` when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> dict[str, Any]:
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": _Calls(os.system, f"touch {marker}"),
        "eval": _Calls(eval, write),
        "exec": _Calls(exec, write),
        "subprocess": _Calls(subprocess.call, ["touch", str(marker)]),
        "open": _Calls(open, str(marker), "w"),
        "getattr": _Calls(getattr, _Calls(__import__, "os"), "system"),
        "in a value": {"weight": _Calls(os.mkdir, str(marker))},
        "in a key": {_Calls(os.mkdir, str(marker)): torch.zeros(1)},
        "torch.load": _Calls(torch.load, str(marker)),
        "partial": _Calls(functools.partial, os.system, "true"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain"])
@pytest.mark.parametrize("payload", payloads(Path("x")))
def test_no_pickle_runs_anything(payload: str, legacy: bool, toy: Path, tmp_path: Path, tally: Tally) -> None:
    unet, marker = tmp_path / "unet", tmp_path / "marker"
    unet.mkdir()
    shutil.copy(toy / COMPONENTS["vae"] / "config.json", unet)
    torch.save(
        payloads(marker)[payload],
        unet / "diffusion_pytorch_model.bin",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError, match="is refused, only pickles of plain tensors are read"):
        check_component(find_component(unet, "vae"))
    assert not marker.exists()
    tally("pickles with code refused", 1)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped-absolute", "archive/../../escaped"])
def test_an_archive_with_names_that_lead_out_writes_nothing(name: str, tmp_path: Path, toy: Path) -> None:
    shutil.copy(toy / COMPONENTS["vae"] / "config.json", tmp_path)
    torch.save({"a": torch.zeros(4)}, tmp_path / "diffusion_pytorch_model.bin")
    with zipfile.ZipFile(tmp_path / "diffusion_pytorch_model.bin", "a") as archive:
        archive.writestr(name, b"x" * 100)
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    with pytest.raises(CheckpointError):
        check_component(find_component(tmp_path, "vae"))
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before
    assert not Path("/tmp/escaped-absolute").exists()


def test_an_archive_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path, toy: Path) -> None:
    shutil.copy(toy / COMPONENTS["vae"] / "config.json", tmp_path)
    bomb = tmp_path / "diffusion_pytorch_model.bin"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(2000):
                file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 16 << 20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, _ = process_memory()
    with no_hang(), pytest.raises(CheckpointError):
        check_component(find_component(tmp_path, "vae"))
    assert process_memory()[1] - before < 512 << 20


# --- links ---------------------------------------------------------------------------------------------


def test_a_link_to_another_file_than_the_manifest_s_is_refused_by_its_digest(
    toy_bundle: Path, tmp_path: Path, tally: Tally
) -> None:
    """Links are followed; what they lead to must be what was built, of the right size or not."""
    bundle, outside = tmp_path / "bundle", tmp_path / "outside"
    shutil.copytree(toy_bundle, bundle)
    for relative, entry in Bundle.open(bundle).manifest.files.items():
        (bundle / relative).rename(tmp_path / "file")
        (bundle / relative).symlink_to(outside)
        for size in (entry.size, entry.size + 1):
            outside.write_bytes(bytes(size))
            with pytest.raises(BundleError, match=f"{relative} in .* is damaged: .* through a link, from"):
                Bundle.open(bundle)
            tally("links to other files refused", 1)
        (bundle / relative).unlink()
        (tmp_path / "file").rename(bundle / relative)
