# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's safety checker in a checkpoint: its sizes, and how its pictures are prepared.

`safety_checker/` is a CLIPConfig with the tensors of diffusers' StableDiffusionSafetyChecker, and
`feature_extractor/preprocessor_config.json` is CLIP's image processor. Loads torch for pickled weights only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.config_limits import check_config
from lamp_trt.export.checkpoints.files import ComponentFiles, read_json, refuse_lfs_pointer

CHECKER_CLASS = "StableDiffusionSafetyChecker"
CONCEPTS, SPECIAL_CARE = "concept_embeds", "special_care_embeds"
THRESHOLDS = {CONCEPTS: "concept_embeds_weights", SPECIAL_CARE: "special_care_embeds_weights"}
"""Tensors of embeddings (n, projection_dim), and of their thresholds (n,)."""

VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Of transformers' CLIPVisionConfig, for fields that a config leaves out."""
PROJECTION_DIM = 512
"""Likewise of its CLIPConfig."""

MAX_CONCEPTS = 1024
MAX_IMAGE_SIZE = 1024
MAX_PATCHES = 4096
"""CLIP ViT-L/14 has 256 patches of a picture of 224 pixels."""
BICUBIC = 3
"""Pillow's number of the resampling that CLIP was trained with."""

EXTRACTOR_FOLDER, EXTRACTOR_FILE = "feature_extractor", "preprocessor_config.json"
_REMEDY = "Give the whole checkpoint, or one without its safety_checker folder, whose bundle filters nothing."


@dataclass(frozen=True)
class Preprocessing:
    """Of the pictures' channels in [0, 1]: what is subtracted, and what that is divided by."""

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


def vision_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower's fields of a CLIPConfig, which older files hold twice; VISION_DEFAULTS for the
    rest."""
    given: dict[str, Any] = {}
    for name in ("vision_config", "vision_config_dict"):
        part = config.get(name) or {}
        if not isinstance(part, Mapping):
            raise CheckpointError(f"safety_checker/config.json: {name} is {part!r:.100}, expected an object.")
        given |= part
    return {name: given.get(name, default) for name, default in VISION_DEFAULTS.items()}


def with_sizes(files: ComponentFiles) -> ComponentFiles:
    """`files` whose config also says what only the tensors and the nested configs do: image_size,
    num_concepts and num_special_care.

    Raises CheckpointError for a config of another class, or sizes that no such checker has.
    """
    path, config = files.folder / "config.json", files.config
    found = config.get("architectures")
    if found != [CHECKER_CLASS]:
        raise CheckpointError(f"{path} describes {found!r:.100}, expected {[CHECKER_CLASS]!r}.")
    vision = vision_config(config)
    check_config(path, vision)
    for name, limit in (("image_size", MAX_IMAGE_SIZE), ("patch_size", MAX_IMAGE_SIZE), ("num_channels", 3)):
        if type(vision[name]) is not int or not 1 <= vision[name] <= limit:
            raise CheckpointError(
                f"{path}: {name} is {vision[name]!r:.100}, expected an integer from 1 to {limit}."
            )
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    if vision["num_channels"] != 3 or not 1 <= patches <= MAX_PATCHES:
        raise CheckpointError(
            f"{path}: {patches} patches of {vision['num_channels']} channels, expected 1 to {MAX_PATCHES} "
            "patches of an RGB picture."
        )
    if vision["hidden_size"] % vision["num_attention_heads"]:
        raise CheckpointError(
            f"{path}: hidden_size {vision['hidden_size']} is no multiple of num_attention_heads "
            f"{vision['num_attention_heads']}."
        )
    counts = _counts(files)
    sizes = {
        "image_size": vision["image_size"],
        "num_concepts": counts[CONCEPTS],
        "num_special_care": counts[SPECIAL_CARE],
    }
    return replace(files, config={**config, **sizes})


def _counts(files: ComponentFiles) -> dict[str, int]:
    """Rows of the embeddings, from the headers of the weight files."""
    shapes = _shapes(files)
    counts = {}
    for name in THRESHOLDS:
        shape = shapes.get(name)
        if shape is None or len(shape) != 2 or not 1 <= shape[0] <= MAX_CONCEPTS:
            held = "lacks it" if shape is None else f"has {list(shape)}"
            raise CheckpointError(
                f"{files.weight_files[0]} is no {CHECKER_CLASS}: expected {name} with 1 to {MAX_CONCEPTS} "
                f"rows, the file {held}. {_REMEDY}"
            )
        counts[name] = shape[0]
    return counts


def _shapes(files: ComponentFiles) -> dict[str, tuple[int, ...]]:
    if all(path.suffix == ".safetensors" for path in files.weight_files):
        for path in files.weight_files:
            refuse_lfs_pointer(path)
        headers = [read_weight_file(path).tensors for path in files.weight_files]
        return {name: ref.shape for tensors in headers for name, ref in tensors.items()}
    from lamp_trt.export.checkpoints.tensor_files import TensorReader

    with TensorReader(files.weight_files) as reader:
        return {name: info.shape for name, info in reader.infos.items()}


def preprocessing(root: Path, image_size: int) -> Preprocessing:
    """How the checkpoint in `root` prepares pictures: the shorter side resized to image_size by bicubic
    interpolation, the centre cut out, each channel normalised.

    Raises CheckpointError for another preparation, naming the field, and for a file that is missing.
    """
    path = root / EXTRACTOR_FOLDER / EXTRACTOR_FILE
    if not (root / EXTRACTOR_FOLDER).is_dir():
        raise CheckpointError(
            f"{root} has a safety_checker and no {EXTRACTOR_FOLDER}, which says how its pictures are "
            f"prepared. {_REMEDY}"
        )
    config = read_json(path)
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        _expect(path, config, name, config.get(name, True) is True, "true")
    _expect(path, config, "resample", config.get("resample", BICUBIC) == BICUBIC, "3 (bicubic)")
    scale = config.get("rescale_factor", 1 / 255)
    close = isinstance(scale, int | float) and abs(scale - 1 / 255) < 1e-9
    _expect(path, config, "rescale_factor", close, "1/255")
    size = config.get("size", image_size)
    _expect(path, config, "size", size in (image_size, {"shortest_edge": image_size}), str(image_size))
    crop, square = config.get("crop_size", image_size), {"height": image_size, "width": image_size}
    _expect(path, config, "crop_size", crop in (image_size, square), f"{image_size} in both directions")
    mean, std = (_channels(path, config, name) for name in ("image_mean", "image_std"))
    _expect(path, config, "image_std", min(std) > 0, "positive numbers")
    return Preprocessing(mean, std)


def names_checker(root: Path) -> bool:
    """Whether model_index.json says that the checkpoint in `root` has a safety checker."""
    path = root / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    named = index.get("safety_checker")
    return isinstance(named, list) and any(named)


def _expect(path: Path, config: Mapping[str, Any], name: str, fits: bool, expected: str) -> None:
    if not fits:
        raise CheckpointError(f"{path}: {name} is {config.get(name)!r:.100}, expected {expected}.")


def _channels(path: Path, config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = config.get(name)
    numbers = isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) < 1e3 for value in values
    )
    _expect(path, config, name, numbers and len(values or ()) == 3, "three numbers, one for each channel")
    assert isinstance(values, list)
    return tuple(float(value) for value in values)
