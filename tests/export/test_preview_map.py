# SPDX-License-Identifier: Apache-2.0
"""The preview map of a build: how well it fits, that it is the same every time, and when it is made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lamp_trt.engine.bundle.manifest import Manifest, PreviewEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.dtypes import PRECISIONS
from lamp_trt.engine.errors import BundleError, CheckpointError
from lamp_trt.engine.torch_threads import torch_threads
from lamp_trt.export import preview_map
from lamp_trt.export.build import build_bundle
from lamp_trt.export.checkpoints.files import ComponentFiles, find_component
from lamp_trt.export.checkpoints.tensors import load_vae
from lamp_trt.export.preview_map import fitted_map, synthetic_pictures
from lamp_trt.export.recipe import recipe_from_options
from tests.fixtures.toy import toy_options

SCALING = 0.18215


def vae_of(folder: Path, name: str = "vae") -> ComponentFiles:
    files = find_component(folder, "vae")
    return ComponentFiles(name, files.folder, files.config, files.weight_files)


def manifest_of(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def independent_r_squared(vae_folder: Path, entry: PreviewEntry, pictures: np.ndarray) -> float:
    """Of the whole VAE as diffusers runs it, in float32."""
    import torch

    vae: Any = load_vae(vae_folder)
    with torch.no_grad():
        encoded = vae.encode(torch.from_numpy(pictures).float()).latent_dist.mean * SCALING
        small = torch.nn.functional.avg_pool2d(torch.from_numpy(pictures), 8)
    predicted = np.einsum("rc,nchw->nrhw", np.array(entry.weights), encoded.double().numpy())
    predicted += np.array(entry.bias)[:, None, None]
    colours = small.numpy()
    total = np.square(colours - colours.mean(axis=(0, 2, 3), keepdims=True)).sum()
    return float(1 - np.square(predicted - colours).sum() / total)


def test_the_manifest_holds_the_map_and_how_well_it_fits(toy_bundle: Path, toy: Path) -> None:
    previews = manifest_of(toy_bundle).previews
    assert previews.keys() == {"vae"}
    entry = previews["vae"]
    numbers = np.array([*np.ravel(entry.weights), *entry.bias, entry.r_squared])
    np.testing.assert_array_equal(numbers, np.round(numbers, 3))
    fitted_on = synthetic_pictures(preview_map.PICTURES, preview_map.SIZE)
    assert entry.r_squared == pytest.approx(independent_r_squared(toy / "sd", entry, fitted_on), abs=1e-3)
    assert entry.r_squared > 0.95
    others = synthetic_pictures(4, 96, seed=7)
    assert independent_r_squared(toy / "sd", entry, others) > 0.95


def test_no_other_map_fits_better(toy: Path) -> None:
    """Than the one with the penalty, by more than it and the rounding cost."""
    files = vae_of(toy / "sd")
    pictures = synthetic_pictures(preview_map.PICTURES, preview_map.SIZE)
    samples = preview_map.samples_of(preview_map.encoded(files, pictures) * SCALING)
    colours = preview_map.cell_colours(pictures)
    design = np.column_stack([samples, np.ones(len(samples))])
    best = design @ np.linalg.lstsq(design, colours, rcond=None)[0]
    found = fitted_map(files, SCALING, "key").r_squared
    assert found <= preview_map.r_squared(best, colours) + 5e-4
    assert found > preview_map.r_squared(best, colours) - 0.01


def test_sdxls_vae_has_a_map_of_its_own(sdxl_bundle: Path) -> None:
    previews = manifest_of(sdxl_bundle).previews
    assert previews.keys() == {"vae", "sdxl_vae"}
    assert previews["vae"].key != previews["sdxl_vae"].key
    assert previews["vae"].r_squared > 0.9
    assert 0 <= previews["sdxl_vae"].r_squared < 0.1  # random weights: the manifest says that it shows little


@pytest.mark.parametrize("count", [1, 2])
def test_builds_on_any_number_of_threads_are_the_same_bytes(
    count: int, toy_bundle: Path, toy: Path, tmp_path: Path
) -> None:
    """Of a bundle that lacks the map alone, so that nothing else is exported."""
    out = Path(shutil.copytree(toy_bundle, tmp_path / "b"))
    before = change_previews(out, {})
    with torch_threads(count):
        build_bundle(out, toy_options(toy))
    assert (out / "bundle.json").read_bytes() == before


def test_the_precision_of_the_bundle_does_not_change_the_map(toy: Path) -> None:
    keys = {recipe_from_options(toy_options(toy, precision=p)).preview_key("vae") for p in PRECISIONS}
    assert len(keys) == 1


def change_previews(bundle: Path, previews: dict[str, PreviewEntry]) -> bytes:
    """Replace the maps of a bundle; the bytes of its manifest before."""
    before = (bundle / "bundle.json").read_bytes()
    (bundle / "bundle.json").write_bytes(replace(Manifest.from_json(before), previews=previews).to_json())
    return before


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that are fitted."""
    names: list[str] = []

    def counted(files: ComponentFiles, *rest: Any) -> PreviewEntry:
        names.append(files.name)
        return fitted_map(files, *rest)

    monkeypatch.setattr(preview_map, "fitted_map", counted)
    return names


def test_a_build_that_changes_nothing_fits_nothing(
    toy_bundle: Path, toy: Path, tmp_path: Path, fits: list[str]
) -> None:
    out = Path(shutil.copytree(toy_bundle, tmp_path / "b"))
    before = (out / "bundle.json").read_bytes()
    build_bundle(out, toy_options(toy))
    assert (out / "bundle.json").read_bytes() == before
    assert fits == []


@pytest.mark.parametrize("previews", [{}, {"vae": PreviewEntry(((0.0,) * 4,) * 3, (0.0,) * 3, 0.0, "old")}])
def test_a_bundle_without_this_vaes_map_gets_it_once_by_the_same_build(
    previews: dict[str, PreviewEntry], toy_bundle: Path, toy: Path, tmp_path: Path, fits: list[str]
) -> None:
    """One of an older release, and one with the map of another VAE."""
    out = Path(shutil.copytree(toy_bundle, tmp_path / "b"))
    before = change_previews(out, previews)
    report = build_bundle(out, toy_options(toy))
    assert (out / "bundle.json").read_bytes() == before
    assert fits == ["vae"]
    assert {file.seconds for file in report.files} == {None}


def test_another_vae_has_another_map(toy_bundle: Path, toy: Path, tmp_path: Path) -> None:
    """Latents of twice the size: half the weights."""
    sd = Path(shutil.copytree(toy / "sd", tmp_path / "sd"))
    weights = sd / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    doubled = {name: tensors[name] * 2 for name in ("quant_conv.weight", "quant_conv.bias")}
    save_file({**tensors, **doubled}, weights)
    before = manifest_of(toy_bundle).previews["vae"]
    key = recipe_from_options(toy_options(toy, sd=sd)).preview_key("vae")
    assert key != before.key
    after = fitted_map(vae_of(sd), SCALING, key)
    np.testing.assert_allclose(np.array(after.weights) * 2, before.weights, atol=0.02)


def broken_vae(toy: Path, folder: Path, value: float) -> ComponentFiles:
    sd = Path(shutil.copytree(toy / "sd", folder / "sd"))
    weights = sd / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.full_like(tensor, value) for name, tensor in tensors.items()}, weights)
    return vae_of(sd)


def test_a_vae_of_zeros_has_a_map_of_zeros(toy: Path, tmp_path: Path) -> None:
    entry = fitted_map(broken_vae(toy, tmp_path, 0), SCALING, "key")
    assert (entry.weights, entry.r_squared) == (((0.0,) * 4,) * 3, 0.0)


def test_an_encoder_that_is_not_finite_is_refused(toy: Path, tmp_path: Path) -> None:
    files = broken_vae(toy, tmp_path, 3e38)
    with pytest.raises(CheckpointError, match="returns values that are not finite for a plain picture"):
        fitted_map(files, float("inf"), "key")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [[1.0] * 4] * 2}, r"previews\.vae is \[4, 4, 3\], expected three rows of 4 weights"),
        ({"weights": [[1.0] * 3] * 3}, r"previews\.vae is \[3, 3, 3, 3\]"),
        ({"bias": [1.0]}, r"previews\.vae is \[4, 4, 4, 1\]"),
        ({"bias": ["a", 0.0, 0.0]}, r"previews\.vae\.bias\[0\] is 'a', expected a number"),
        ({"bias": [0.0, -1e300, 0.0]}, r"previews\.vae is 1e\+300, expected numbers of at most 100"),
        ({"r_squared": None}, r"previews\.vae\.r_squared is None, expected a number"),
        ({"more": 1}, r"previews\.vae\.more is not a known key"),
    ],
)
def test_a_manifest_with_another_map_is_refused(
    toy_bundle: Path, change: dict[str, Any], message: str
) -> None:
    document = json.loads((toy_bundle / "bundle.json").read_bytes())
    document["previews"]["vae"] |= change
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document).encode())


def test_a_map_of_no_vae_is_refused(toy_bundle: Path) -> None:
    document = json.loads((toy_bundle / "bundle.json").read_bytes())
    document["previews"]["other"] = document["previews"]["vae"]
    with pytest.raises(BundleError, match=r"previews\.other is 'other', expected the name of a VAE"):
        Manifest.from_json(json.dumps(document).encode())
