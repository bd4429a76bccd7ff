# SPDX-License-Identifier: Apache-2.0
"""Tensors of a checkpoint's components under current names, and modules loaded with them.

Names are the state-dict names of the exported modules, whatever the age of the files:
- VAE: the current diffusers AutoencoderKL. The mid-block attention's old names query, key, value, proj_attn
  become to_q, to_k, to_v, to_out.0, and its (c, c, 1, 1) convolutions become (c, c).
- CLIP text model: transformers 5's CLIPTextModel, which has no `text_model.` prefix
  (CLIPTextModelWithProjection keeps it). The stored position_ids, a constant, are dropped.
- Safety checker: its vision tower bare, `vision_model.`, where older releases of transformers have
  `vision_model.vision_model.`; the stored position_ids are dropped likewise.
- UNet: as stored.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.files import ComponentFiles, find_component
from lamp_trt.export.checkpoints.kinds import kind_of_tensors
from lamp_trt.export.checkpoints.safety import CHECKER_CLASS
from lamp_trt.export.checkpoints.tensor_files import TensorInfo, TensorReader, require_float

Module = TypeVar("Module", bound=nn.Module)


def tensor_infos(files: ComponentFiles) -> dict[str, TensorInfo]:
    """Dtype and shape of every tensor by normalised name, sorted, read from the files' headers."""
    return {name: info for name, (_, info) in _sources(files).items()}


def iter_tensors(files: ComponentFiles, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) in the order of `tensor_infos`, converted to `dtype` if given.

    Unconverted tensors are views of the mapped file, so only one converted tensor at a time is in memory.
    """
    with TensorReader(files.weight_files) as reader:
        for name, (stored_name, info) in _sources(files).items():
            yield name, reader.tensor(stored_name).reshape(info.shape).to(dtype)


def _sources(files: ComponentFiles) -> dict[str, tuple[str, TensorInfo]]:
    """Normalised name → (stored name, normalised info), sorted."""
    sources: dict[str, tuple[str, TensorInfo]] = {}
    with TensorReader(files.weight_files) as reader:
        for stored_name, info in reader.infos.items():
            name = normalised_name(stored_name, files.config)
            if name is None:
                continue
            if name in sources:
                raise CheckpointError(
                    f"{files.folder} holds {name} twice, also as {stored_name}. Remove one of the two."
                )
            require_float(files.folder, stored_name, info)
            if name != stored_name and info.shape[2:] == (1, 1):
                info = TensorInfo(info.dtype, info.shape[:2])
            sources[name] = (stored_name, info)
    return dict(sorted(sources.items()))


def normalised_name(stored_name: str, config: Mapping[str, Any]) -> str | None:
    """A stored tensor's name in the current module of `config`'s class; None if it has no such tensor."""
    module = class_name(config)
    if module == "AutoencoderKL":
        return _OLD_VAE_ATTENTION.sub(lambda m: m[1] + _VAE_ATTENTION[m[2]], stored_name)
    if module == "CLIPTextModel":
        bare = stored_name.removeprefix("text_model.")
        return None if bare == "embeddings.position_ids" else bare
    if module == "CLIPTextModelWithProjection":
        return None if stored_name == "text_model.embeddings.position_ids" else stored_name
    if module == CHECKER_CLASS:
        bare = stored_name.removeprefix("vision_model.")
        bare = bare if bare.startswith("vision_model.") else stored_name
        return None if bare == "vision_model.embeddings.position_ids" else bare
    return stored_name


def class_name(config: Mapping[str, Any]) -> str | None:
    """The class named by a config of diffusers or transformers; None if it names none."""
    match config:
        case {"_class_name": str(name)} | {"architectures": [str(name), *_]}:
            return name
    return None


_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_VAE_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")


def check_tensors(files: ComponentFiles, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless `files` hold exactly the tensors `expected`, normalised name → shape."""
    stored = tensor_infos(files)
    kind = kind_of_tensors(stored.keys() - expected.keys(), files.name)
    if kind:
        raise CheckpointError(f"{files.weight_files[0]} is not a {files.name} but {kind}")
    problems = [
        ("lacks", [f"{n} {list(expected[n])}" for n in sorted(expected.keys() - stored.keys())]),
        ("has unknown", sorted(stored.keys() - expected.keys())),
        (
            "has misshaped",
            [
                f"{n} {list(stored[n].shape)}, expected {list(expected[n])}"
                for n in sorted(expected.keys() & stored.keys())
                if stored[n].shape != tuple(expected[n])
            ],
        ),
    ]
    sentences = [
        f"{verb} {len(names)} tensor{'s' * (len(names) > 1)}: {'; '.join(names[:3])}{' …' * (len(names) > 3)}"
        for verb, names in problems
        if names
    ]
    if sentences:
        raise CheckpointError(
            f"{files.weight_files[0]} does not fit its config.json (or is not a {files.name}): it "
            f"{', and it '.join(sentences)}."
        )


def load_module(module: Module, files: ComponentFiles, dtype: torch.dtype) -> Module:
    """Give `module` (built on the meta device) the tensors of `files` in `dtype`; eval mode, no gradients.

    Tensors already in `dtype` stay mapped to the file. Raises CheckpointError if names or shapes differ.
    """
    check_tensors(files, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
    module.load_state_dict(dict(iter_tensors(files, dtype)), assign=True)
    return module.requires_grad_(False).eval()


def load_text_encoder(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load transformers' CLIPTextModel from a `text_encoder` folder or its parent."""
    files = find_component(folder, "text_encoder")
    with empty_weights():
        model = clip_from_config("text_encoder", files.config, "CLIPTextModel")
    return load_module(model, files, dtype)


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load diffusers' AutoencoderKL from a `vae` folder or its parent."""
    files = find_component(folder, "vae")
    with empty_weights():
        vae = diffusers_module_from_config("vae", files.config, "AutoencoderKL")
    return load_module(vae, files, dtype)


def empty_weights() -> AbstractContextManager[None]:
    """A context in which modules are built with parameters on the meta device and real buffers."""
    from accelerate import init_empty_weights

    context: AbstractContextManager[None] = init_empty_weights(include_buffers=False)
    return context


def clip_from_config(component: str, config: Mapping[str, Any], class_name: str) -> nn.Module:
    """Build the transformers CLIP text model of `config`, whose class must be `class_name`."""
    import transformers

    _expect_class(component, config, class_name)
    clip_config = transformers.CLIPTextConfig.from_dict(dict(config))
    model: nn.Module = getattr(transformers, class_name)(clip_config)
    return model


def diffusers_module_from_config(component: str, config: Mapping[str, Any], class_name: str) -> nn.Module:
    """Build the diffusers module of `config`, whose class must be `class_name`."""
    import diffusers

    _expect_class(component, config, class_name)
    module: nn.Module = getattr(diffusers, class_name).from_config(dict(config))
    return module


def _expect_class(component: str, config: Mapping[str, Any], expected: str) -> None:
    """Raise CheckpointError unless `config` describes the class `expected`."""
    found = class_name(config) or "no known class"
    if found != expected:
        raise CheckpointError(f"{component}/config.json describes {found}, expected {expected}.")
