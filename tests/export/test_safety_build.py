# SPDX-License-Identifier: Apache-2.0
"""The safety checker from a checkpoint into a bundle: layouts, sizes, cosines, and what is refused."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lamp_trt.benchmarks.verify.checks.bundle import graph_places
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.manifest import SafetyEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.families import SAFETY_CHECKER, VIDEO_NETWORKS
from lamp_trt.export.build import build_bundle
from lamp_trt.export.networks import check_component
from lamp_trt.export.published import EXTRACTOR
from lamp_trt.export.recipe import Recipe, recipe_from_options
from lamp_trt.runtime.media.image import resize_to
from lamp_trt.runtime.safety.decision import scores_of
from lamp_trt.runtime.safety.pictures import crops_of, pixel_values
from tests.fixtures.toy import toy_options

Tensors = dict[str, np.ndarray]
OLD, NEW = "vision_model.vision_model.", "vision_model."
POSITIONS = "embeddings.position_ids"


@pytest.fixture
def sd(safe_toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(safe_toy / "sd", tmp_path / "sd"))


def weights_of(sd: Path) -> Path:
    return sd / "safety_checker" / "model.safetensors"


def recipe_of(toy: Path, sd: Path, **changes: Any) -> Recipe:
    """The checked recipe of the safety checker alone."""
    options = {"sd": sd, "motions": None, "only": (SAFETY_CHECKER,), **changes}
    recipe = recipe_from_options(toy_options(toy, **options))
    check_component(recipe.components[SAFETY_CHECKER].files)
    return recipe


def test_the_bundle_points_at_the_checkpoints_values(safe_bundle: Path, safe_toy: Path) -> None:
    bundle = Bundle.open(safe_bundle, verify="full")
    places = graph_places(bundle, SAFETY_CHECKER)
    assert {place.file for place in places.values()} == {"weights/safety_checker.safetensors"}
    stored = read_weight_file(safe_bundle / "weights/safety_checker.safetensors").arrays()
    given = load_file(weights_of(safe_toy / "sd"))
    assert {name.replace(OLD, NEW) for name in given if POSITIONS not in name} == stored.keys()
    assert stored.keys() - places.keys() == {"concept_embeds_weights", "special_care_embeds_weights"}
    for name, values in stored.items():
        np.testing.assert_array_equal(values, given.get(name, given.get(name.replace(NEW, OLD))))
    safety = bundle.manifest.safety
    assert safety is not None
    assert safety.image_std == tuple(EXTRACTOR["image_std"])
    np.testing.assert_array_equal(safety.concept_thresholds, given["concept_embeds_weights"])
    np.testing.assert_array_equal(safety.special_care_thresholds, given["special_care_embeds_weights"])


def test_the_other_networks_are_as_without_a_checker(safe_bundle: Path, toy_bundle: Path) -> None:
    files, before = (Bundle.open(path).manifest.files for path in (safe_bundle, toy_bundle))
    assert files.keys() - before.keys() == {"safety_checker.onnx", "weights/safety_checker.safetensors"}
    assert {name: files[name] for name in before} == before


def test_a_second_build_keeps_everything(safe_bundle: Path, safe_toy: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(safe_bundle, tmp_path / "bundle"))
    digest = Bundle.open(out).digest
    report = build_bundle(out, toy_options(safe_toy))
    assert {file.seconds for file in report.files} == {None}
    assert report.digest == digest


def test_a_build_without_a_checker_keeps_that_of_the_bundle(
    safe_bundle: Path, toy: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(safe_bundle, tmp_path / "bundle"))
    build_bundle(out, toy_options(toy))
    assert Bundle.open(out).manifest.safety == Bundle.open(safe_bundle).manifest.safety


def test_another_preparation_is_another_bundle(
    safe_bundle: Path, safe_toy: Path, sd: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(safe_bundle, tmp_path / "bundle"))
    edit(sd / "feature_extractor" / "preprocessor_config.json", image_std=[0.25, 0.25, 0.25])
    build_bundle(out, toy_options(safe_toy, sd=sd, motions=None, only=(SAFETY_CHECKER,)))
    safety = Bundle.open(out).manifest.safety
    assert safety is not None
    assert safety.image_std == (0.25, 0.25, 0.25)


def published_checker(sd: Path) -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return StableDiffusionSafetyChecker.from_pretrained(sd / "safety_checker", local_files_only=True).eval()


def random_frames(count: int) -> np.ndarray:
    """uint8 (count, 64, 96, 3): draw_images' and uniform colours with noise."""
    from lamp_trt.export.toy.images import draw_images

    generator = torch.Generator().manual_seed(5)
    drawn = draw_images(count, 64, 96, generator)
    colours = 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1
    mixed = torch.lerp(drawn, colours, torch.rand(count, 1, 1, 1, generator=generator))
    return ((mixed + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("count", [99, pytest.param(2100, marks=pytest.mark.slow)])
def test_cosines_and_verdicts_are_those_of_diffusers(
    count: int, safe_bundle: Path, safe_toy: Path, one_thread: None
) -> None:
    """From frames on: transformers' processor and diffusers' checker against the bundle. The thresholds are
    such that a third of the frames is flagged, and another third has a special-care concept."""
    from transformers import CLIPImageProcessor

    bundle, checker = Bundle.open(safe_bundle), published_checker(safe_toy / "sd")
    entry = bundle.manifest.safety
    assert entry is not None
    processor = CLIPImageProcessor(**{k: v for k, v in EXTRACTOR.items() if k != "feature_extractor_type"})
    engine = OnnxRuntimeEngine(bundle, SAFETY_CHECKER, num_threads=1)
    ours: list[tuple[np.ndarray, np.ndarray]] = []
    theirs: list[tuple[np.ndarray, np.ndarray]] = []
    pictures = []
    frames = random_frames(count)
    for first in range(0, count, 3):
        batch = frames[first : first + 3]
        crops = [crop for frame in batch for crop in crops_of(frame, 224, "official")]
        outputs = engine.run({"pixel_values": pixel_values(crops, entry)})
        ours.append((outputs["concept_cosines"], outputs["special_care_cosines"]))
        given = processor([*batch], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        pictures.append(torch.from_numpy(np.asarray(given)))
        theirs.append(cosines_of(checker, pictures[-1]))
    concepts, special_care = (np.concatenate(part) for part in zip(*ours, strict=True))
    expected, expected_special = (np.concatenate(part) for part in zip(*theirs, strict=True))
    np.testing.assert_allclose(concepts, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(special_care, expected_special, rtol=0, atol=1e-5)

    thresholds = np.quantile(expected, 0.95, axis=0), np.quantile(expected_special, 0.85, axis=0)
    weights = checker.concept_embeds_weights, checker.special_care_embeds_weights
    for parameter, values in zip(weights, thresholds, strict=True):
        parameter.data = torch.from_numpy(values.astype(np.float32))
    levels = (tuple(parameter.tolist()) for parameter in weights)
    entry = replace(
        entry, **dict(zip(("concept_thresholds", "special_care_thresholds"), levels, strict=True))
    )
    verdicts = [flag for batch in pictures for flag in checker(batch, np.zeros((len(batch), 2, 2, 3)))[1]]
    assert 0.2 <= np.mean(verdicts) <= 0.8
    below, above = (scores_of(expected + by, expected_special + by, entry).flagged for by in (-1e-5, 1e-5))
    near_a_boundary = below != above
    different = scores_of(concepts, special_care, entry).flagged != np.array(verdicts)
    assert not (different & ~near_a_boundary).any()
    assert near_a_boundary.mean() < 0.005


def cosines_of(checker: Any, pictures: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance

    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(pictures)[1])
        both = checker.concept_embeds, checker.special_care_embeds
        concepts, special_care = (cosine_distance(embeds, those).numpy() for those in both)
    return concepts, special_care


def edit(path: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps({**config, **changes}))


def change_vision(sd: Path, **changes: Any) -> None:
    path = sd / "safety_checker" / "config.json"
    vision = json.loads(path.read_text())["vision_config"]
    edit(path, vision_config={**vision, **changes})


def change_tensors(sd: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(weights_of(sd))
    save_file(change(tensors), weights_of(sd))


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "old transformers": lambda tensors: tensors,
    "new transformers": lambda tensors: {name.replace(OLD, NEW): values for name, values in tensors.items()},
    "no position_ids": lambda tensors: {n: values for n, values in tensors.items() if POSITIONS not in n},
    "fp16": lambda tensors: {
        name: values.astype(np.float16) if values.dtype == np.float32 else values
        for name, values in tensors.items()
    },
    "other numbers of concepts": lambda tensors: {
        name: np.concatenate([values] * 2)
        if name.startswith("concept")
        else values[:1]
        if name.startswith("special")
        else values
        for name, values in tensors.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_read(layout: str, safe_toy: Path, sd: Path) -> None:
    change_tensors(sd, LAYOUTS[layout])
    recipe = recipe_of(safe_toy, sd, precision="fp16")
    sizes = (34, 1) if layout == "other numbers of concepts" else (17, 3)
    assert (recipe.sizes["safety_concepts"], recipe.sizes["safety_special_care"]) == sizes
    assert [tensor.shape for tensor in recipe.io(SAFETY_CHECKER)[1]] == [(3, count) for count in sizes]
    assert recipe.precision_of(SAFETY_CHECKER) == "fp32"
    assert {tensor.dtype for tensors in recipe.io(SAFETY_CHECKER) for tensor in tensors} == {"float32"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.safetensors", "sharded"])
def test_published_files_are_read(name: str, safe_toy: Path, sd: Path) -> None:
    folder, tensors = sd / "safety_checker", load_file(weights_of(sd))
    weights_of(sd).unlink()
    if name == "sharded":
        names = sorted(tensors)
        shards = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, part in shards.items():
            save_file({name: tensors[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in shards.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif name.endswith(".bin"):
        torch.save({name: torch.from_numpy(values) for name, values in tensors.items()}, folder / name)
    else:
        save_file(tensors, folder / name)
    assert recipe_of(safe_toy, sd).sizes["safety_concepts"] == 17


@pytest.mark.parametrize("bits", ["vision_config_dict", "size", "no rescale", "defaults"])
def test_newer_and_older_configs_are_read(bits: str, safe_toy: Path, sd: Path) -> None:
    config, extractor = (
        sd / "safety_checker" / "config.json",
        sd / "feature_extractor" / "preprocessor_config.json",
    )
    if bits == "vision_config_dict":
        vision = json.loads(config.read_text())["vision_config"]
        edit(config, vision_config={}, vision_config_dict=vision)
    elif bits == "size":
        size = {"height": 224, "width": 224}
        edit(extractor, size={"shortest_edge": 224}, crop_size=size, do_rescale=True, rescale_factor=1 / 255)
    elif bits == "no rescale":
        edit(extractor, rescale_factor=0.00392156862745098)
    else:
        edit(extractor, ("size", "crop_size", "resample", "do_convert_rgb"))
    assert recipe_of(safe_toy, sd).sizes["safety_image_size"] == 224


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no feature_extractor": (
        lambda sd: shutil.rmtree(sd / "feature_extractor"),
        "no feature_extractor, which says",
    ),
    "empty feature_extractor": (
        lambda sd: (sd / "feature_extractor" / "preprocessor_config.json").unlink(),
        "preprocessor_config.json is missing",
    ),
    "no config": (lambda sd: (sd / "safety_checker" / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda sd: weights_of(sd).unlink(), "safety_checker has no weights"),
    "empty folder": (
        lambda sd: [path.unlink() for path in (sd / "safety_checker").iterdir()],
        "config.json is missing",
    ),
    "a file in its place": (
        lambda sd: (shutil.rmtree(sd / "safety_checker"), (sd / "safety_checker").write_text("")),
        "is not a checkpoint with 'safety_checker'",
    ),
    "cut off": (
        lambda sd: weights_of(sd).write_bytes(weights_of(sd).read_bytes()[:-100]),
        "not a usable safetensors file",
    ),
    "git-lfs pointer": (
        lambda sd: weights_of(sd).write_text("version https://git-lfs.github.com/spec/v1"),
        "git-lfs pointer",
    ),
    "another class": (
        lambda sd: edit(sd / "safety_checker" / "config.json", architectures=["CLIPModel"]),
        r"describes \['CLIPModel'\], expected \['StableDiffusionSafetyChecker'\]",
    ),
    "another width": (
        lambda sd: edit(sd / "safety_checker" / "config.json", projection_dim=24),
        "has misshaped .*concept_embeds",
    ),
    "another width of the tower": (lambda sd: change_vision(sd, hidden_size=64), "has misshaped"),
    "more layers": (lambda sd: change_vision(sd, num_hidden_layers=3), "lacks 16 tensors"),
    "fewer layers": (lambda sd: change_vision(sd, num_hidden_layers=1), "has unknown 16 tensors"),
    "other patches": (lambda sd: change_vision(sd, patch_size=28), "has misshaped"),
    "a billion layers": (
        lambda sd: change_vision(sd, num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000",
    ),
    "no patches": (lambda sd: change_vision(sd, patch_size=0), "patch_size is 0"),
    "a huge picture": (lambda sd: change_vision(sd, image_size=10**6), "image_size is 1000000"),
    "grey pictures": (
        lambda sd: change_vision(sd, num_channels=1),
        "expected 1 to 4096 patches of an RGB picture",
    ),
    "heads that do not divide": (lambda sd: change_vision(sd, num_attention_heads=5), "is no multiple of"),
    "vision_config is a list": (
        lambda sd: edit(sd / "safety_checker" / "config.json", vision_config=[1]),
        "vision_config is .*expected an object",
    ),
    "no concepts": (
        lambda sd: change_tensors(sd, lambda t: {n: v for n, v in t.items() if n != "concept_embeds"}),
        "expected concept_embeds with 1 to 1024 rows, the file lacks it",
    ),
    "concepts without an axis": (
        lambda sd: change_tensors(sd, lambda t: {**t, "concept_embeds": np.zeros(17, np.float32)}),
        r"the file has \[17\]",
    ),
    "a threshold too few": (
        lambda sd: change_tensors(sd, lambda t: {**t, "concept_embeds_weights": np.zeros(16, np.float32)}),
        "has misshaped .*concept_embeds_weights",
    ),
    "a tensor too many": (
        lambda sd: change_tensors(sd, lambda t: {**t, "visual_projection.bias": np.zeros(16, np.float32)}),
        "has unknown 1 tensor: visual_projection.bias",
    ),
    "one position_ids that is not its own": (
        lambda sd: change_tensors(sd, lambda t: {**t, "position_ids": np.zeros(17, np.float32)}),
        "has unknown 1 tensor: position_ids",
    ),
    "bilinear": (
        lambda sd: edit(sd / "feature_extractor" / "preprocessor_config.json", resample=2),
        "resample is 2, expected 3",
    ),
    "another size": (
        lambda sd: edit(sd / "feature_extractor" / "preprocessor_config.json", size=336),
        "size is 336, expected 224",
    ),
    "no crop": (
        lambda sd: edit(sd / "feature_extractor" / "preprocessor_config.json", do_center_crop=False),
        "do_center_crop is False, expected true",
    ),
    "no mean": (
        lambda sd: edit(sd / "feature_extractor" / "preprocessor_config.json", ("image_mean",)),
        "image_mean is None, expected three numbers",
    ),
    "deviation of zero": (
        lambda sd: edit(sd / "feature_extractor" / "preprocessor_config.json", image_std=[0.2, 0.0, 0.2]),
        "image_std is .* expected positive numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_checker_is_refused(case: str, safe_toy: Path, sd: Path) -> None:
    spoil, message = REFUSED[case]
    spoil(sd)
    with pytest.raises(CheckpointError, match=message):
        recipe_of(safe_toy, sd, only=() if case == "a file in its place" else (SAFETY_CHECKER,))


def test_a_threshold_that_is_not_finite_is_refused(safe_toy: Path, sd: Path, tmp_path: Path) -> None:
    change_tensors(sd, lambda t: {**t, "concept_embeds_weights": np.full(17, np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"concept_embeds_weights of .* has values that are not finite"):
        build_bundle(tmp_path / "b", toy_options(safe_toy, sd=sd, motions=None, only=(SAFETY_CHECKER,)))
    assert not (tmp_path / "b" / "bundle.json").exists()


def test_a_checker_that_is_named_and_not_there_is_said(
    safe_toy: Path, sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(sd / "safety_checker")
    assert recipe_from_options(toy_options(safe_toy, sd=sd)).networks == VIDEO_NETWORKS
    assert caplog.messages == [
        f"{sd} names a safety checker and does not hold it: this build filters nothing"
    ]
    caplog.clear()
    with pytest.raises(CheckpointError, match="is not a checkpoint with 'safety_checker'"):
        recipe_of(safe_toy, sd)


def test_a_checkpoint_without_a_checker_builds_as_before(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_from_options(toy_options(toy))
    assert recipe.networks == VIDEO_NETWORKS
    assert recipe.preprocessing is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_checker_needs_the_folder_of_stable_diffusion(toy: Path) -> None:
    with pytest.raises(
        InputError, match="safety_checker needs a checkpoint that was not given: add --sd DIR"
    ):
        recipe_from_options(toy_options(toy, sd=None, only=(SAFETY_CHECKER,)))


@pytest.mark.parametrize("seed", [1, 5])
def test_the_toy_of_any_seed_flags_its_picture_and_no_other(seed: int, one_thread: None) -> None:
    from lamp_trt.export.toy.safety import flagged_picture, make_safety_checker
    from lamp_trt.export.toy.training import reproducible

    with reproducible(seed) as generator:
        checker = make_safety_checker(generator)
    flagged = [resize_to(flagged_picture(), *size, "pad") for size in ((64, 96), (320, 512), (96, 64))]
    pictures = [crops_of(frame, 224, "official")[0] for frame in (*flagged, *random_frames(20))]
    entry = SafetyEntry(tuple(EXTRACTOR["image_mean"]), tuple(EXTRACTOR["image_std"]), (), ())
    cosines = cosines_of(checker, torch.from_numpy(pixel_values(pictures, entry)))
    module: Any = checker
    concepts = tuple(module.concept_embeds_weights.tolist())
    special_care = tuple(module.special_care_embeds_weights.tolist())
    entry = replace(entry, concept_thresholds=concepts, special_care_thresholds=special_care)
    assert scores_of(*cosines, entry).flagged.tolist() == [True] * 3 + [False] * 20
