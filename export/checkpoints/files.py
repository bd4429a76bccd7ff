# SPDX-License-Identifier: Apache-2.0
"""Search for the components of a checkpoint folder in the diffusers layout, without torch and offline.

A component is a folder with a config and weights (`unet/`, `vae/`, `text_encoder/`). Weights are not loaded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import COMPONENTS
from lamp_trt.engine.files.links import is_cache_folder, meant_folder, unreadable
from lamp_trt.engine.files.text import TextError, read_json_object
from lamp_trt.engine.files.tokenizer import SERIALIZED, VOCABULARY, missing_tokenizer
from lamp_trt.export.checkpoints.config_limits import check_config
from lamp_trt.export.checkpoints.kinds import hint_for_folder, kind_of_file

DEFAULT_SCALING_FACTOR = 0.18215
"""Stable Diffusion v1's factor for VAE latents, which its vae/config.json omits."""

_MAX_JSON_BYTES = 16 << 20

_MARKERS = ("model_index.json", "config.json", "unet", "vae", "text_encoder")
"""Entries of which a checkpoint or component folder has at least one."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec"


@dataclass(frozen=True)
class ComponentFiles:
    """One component of a checkpoint on disk; `weight_files` are the shards, all safetensors or all .bin."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The requested parts of a checkpoint folder, by name."""

    folder: Path
    components: Mapping[str, ComponentFiles]
    tokenizers: Mapping[str, Path]
    scheduler_config: Mapping[str, Any]


def open_checkpoint(
    folder: str | Path,
    components: tuple[str, ...] = ("text_encoder", "vae"),
    tokenizers: tuple[str, ...] = ("tokenizer",),
) -> Checkpoint:
    """Find the named parts of a checkpoint, by default those that LAMP takes from Stable Diffusion v1.4.

    Raises CheckpointError if any is missing. Tensors are checked later, against a module.
    """
    root = _existing_folder(folder)
    found = {name: find_component(root, name, parent_only=True) for name in components}
    for name in tokenizers:
        layouts = (VOCABULARY, (SERIALIZED,))
        if not any(all(is_present(root / name / file) for file in layout) for layout in layouts):
            raise CheckpointError(
                f"{root} has no {name}/vocab.json and merges.txt, nor {name}/{SERIALIZED}. "
                f"{missing_tokenizer(root / name)} {_LAYOUT_HINT}"
            )
    scheduler = read_json(root / "scheduler" / "scheduler_config.json")
    return Checkpoint(root, found, {name: root / name for name in tokenizers}, scheduler)


def open_components(folder: str | Path, names: tuple[str, ...]) -> Checkpoint:
    """Find components of a checkpoint and the tokenizers of its text encoders, by their names in the bundle.

    Raises CheckpointError as `open_checkpoint` does.
    """
    wanted = [COMPONENTS[name] for name in names]
    tokenizers = {c.tokenizer.folder: c.tokenizer.name for c in wanted if c.tokenizer}
    found = open_checkpoint(folder, tuple(c.folder for c in wanted), tuple(tokenizers))
    return replace(
        found,
        components={c.name: replace(found.components[c.folder], name=c.name) for c in wanted},
        tokenizers={tokenizers[name]: path for name, path in found.tokenizers.items()},
    )


_LAYOUT_HINT = (
    "Give the folder of a whole checkpoint in the diffusers layout (the one with model_index.json)."
)


def find_component(folder: str | Path, name: str, *, parent_only: bool = False) -> ComponentFiles:
    """Find the component `name` in `folder/name`, or in `folder` itself unless `parent_only`.

    Prefers full precision to fp16 variants, then safetensors to .bin. Raises CheckpointError.
    """
    root = _existing_folder(folder, name)
    if (root / name).is_dir():
        root = root / name
    elif is_present(root / name) or parent_only or not is_present(root / "config.json"):
        entries = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{root} is not a checkpoint with {name!r}: no {name}/config.json"
            f"{'' if parent_only else ' or config.json'}; it holds {entries}. "
            f"{meant_folder(root, _MARKERS) or hint_for_folder(root, name) or _LAYOUT_HINT}"
        )
    config = read_json(root / "config.json")
    check_config(root / "config.json", config)
    return ComponentFiles(name, root, config, _find_weights(root, name))


def weight_stems(folder_name: str) -> tuple[str, str]:
    """File names of a component's safetensors and pickle weights in its library, without suffix."""
    libraries = {c.library for c in COMPONENTS.values() if c.folder == folder_name}
    if "transformers" in libraries:
        return "model", "pytorch_model"
    return "diffusion_pytorch_model", "diffusion_pytorch_model"


def _find_weights(folder: Path, name: str) -> tuple[Path, ...]:
    """The weight files of component `name` in `folder`, as its library names them."""
    safe, pickled = weight_stems(name)
    tried = []
    for variant in ("", ".fp16"):
        for stem, suffix in ((safe, ".safetensors"), (pickled, ".bin")):
            single = folder / f"{stem}{variant}{suffix}"
            index = folder / f"{stem}{suffix}.index{variant}.json"
            if is_present(single):
                return (single,)
            if is_present(index):
                return _shards(index)
            tried.append(single.name)
    raise CheckpointError(
        f"{folder} has no weights: none of {', '.join(tried)} (or a sharded index of one). "
        f"{hint_for_folder(folder, name)}".strip()
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files of a sharded checkpoint, all in the folder of the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Download it again.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not is_present(index.parent / name):
            raise CheckpointError(
                f"{index} names the file {name!r:.150}, which is not in its folder. Download all shards."
            )
    return tuple(index.parent / name for name in names)


def _existing_folder(folder: str | Path, component: str = "") -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"checkpoint {path} does not exist. {_LAYOUT_HINT}")
        kind = kind_of_file(path, component) if path.is_file() else ""
        hint = f"It is {kind}" if kind else _LAYOUT_HINT
        raise CheckpointError(f"checkpoint {path} is a file, expected a folder. {hint}")
    refuse_cache_folder(path)
    return path


def refuse_cache_folder(folder: Path) -> None:
    """Raise CheckpointError for the root of a Hugging Face cache entry, naming its snapshot folders."""
    if any(os.path.lexists(folder / marker) for marker in _MARKERS) or not is_cache_folder(folder):
        return
    hint = meant_folder(folder, _MARKERS) or _LAYOUT_HINT
    raise CheckpointError(f"{folder} is not a checkpoint itself. {hint}")


def is_present(file: Path) -> bool:
    """Whether `file` is a regular file or a link to one.

    Raises CheckpointError for a broken link: no other file must silently take its place.
    """
    problem = unreadable(file)
    if problem and os.path.islink(file):
        raise CheckpointError(f"{file} {problem}. Get it again from where the checkpoint came from.")
    return problem is None


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in one of a checkpoint's JSON files. Raises CheckpointError, also if it is missing."""
    if not is_present(path):
        raise CheckpointError(f"{path} is missing. {_LAYOUT_HINT}")
    refuse_lfs_pointer(path)
    try:
        return read_json_object(path, _MAX_JSON_BYTES)
    except TextError as error:
        raise CheckpointError(f"{path} {error}") from error


def refuse_lfs_pointer(file: Path) -> None:
    with file.open("rb") as f:
        if f.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(
                f"{file} is a git-lfs pointer, not the file itself. Run `git lfs pull` in its repository."
            )
