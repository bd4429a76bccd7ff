# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the published checkpoints: published configs, tensor names and shapes, all values zero.

Names and shapes come from modules on the meta device. Weight files are sparse: gigabytes long, a few
kilobytes on disk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.bundle.weights import weight_file_header
from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.families import COMPONENTS, LAMP
from lamp_trt.export.checkpoints.files import weight_stems

Shapes = Mapping[str, tuple[int, ...]]

CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
CLIP_BIGG: dict[str, Any] = {
    **CLIP_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SD_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SDXL_VAE: dict[str, Any] = {
    **SD_VAE,
    "_diffusers_version": "0.20.0.dev0",
    "force_upcast": True,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
SDXL_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
SDXL_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
SDXL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

_CHECKER_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
CHECKER: dict[str, Any] = {
    "_name_or_path": "./safety_module",
    "architectures": ["StableDiffusionSafetyChecker"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": CLIP_L,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        **_CHECKER_VISION,
    },
    "vision_config_dict": _CHECKER_VISION,
}
EXTRACTOR: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": CLIP_L,
    "vae": SD_VAE,
    "sdxl_text_encoder": {**CLIP_L, "projection_dim": 768},
    "sdxl_text_encoder_2": CLIP_BIGG,
    "sdxl_unet": SDXL_UNET,
    "sdxl_vae": SDXL_VAE,
    "safety_checker": CHECKER,
}
"""Config of each component by its name in the bundle. The LAMP UNet's is LampUNetConfig's default with
cross_attention_dim 768."""

TENSORS = {
    "text_encoder": 196,
    "vae": 248,
    "unet": 1062,
    "sdxl_text_encoder_2": 517,
    "sdxl_unet": 1680,
    "safety_checker": 396,
}

OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def config_of(component: str) -> dict[str, Any]:
    import dataclasses

    from lamp_trt.export.lamp.unet import LampUNetConfig

    if component == LAMP.unet_component:
        config = LampUNetConfig(cross_attention_dim=768)
        return {**dataclasses.asdict(config), "_class_name": "UNet3DConditionModel"}
    return dict(CONFIGS[component])


def published_shapes(component: str, *, old_names: bool = False) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes in a published file, from the current module on the meta device.

    CLIP-L's names have the prefix `text_model.`, which transformers 5 dropped. old_names: use the names of
    Stable Diffusion v1.4's files, which also hold position_ids.
    """
    from lamp_trt.export.checkpoints.tensors import empty_weights
    from lamp_trt.export.networks import module_from_config

    with empty_weights():
        state = module_from_config(component, config_of(component)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if component.endswith("text_encoder"):
        shapes = {f"text_model.{name}": shape for name, shape in shapes.items()}
    if old_names and component == "text_encoder":
        shapes["text_model.embeddings.position_ids"] = (1, 77)
    if old_names and component == "safety_checker":
        tower = "vision_model."
        shapes = {f"{tower}{n}" if n.startswith(tower) else n: shape for n, shape in shapes.items()}
        shapes["vision_model.vision_model.embeddings.position_ids"] = (1, 257)
    if old_names and component == "vae":
        shapes = {_old_vae_name(name): shape for name, shape in shapes.items()}
    return shapes


def _old_vae_name(name: str) -> str:
    for new, old in OLD_VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def write_sparse(path: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """Write a sparse safetensors file of zeros, of which only the header occupies disk space."""
    tensors = {
        name: ("I64" if name.endswith("position_ids") else dtype, shape) for name, shape in shapes.items()
    }
    header = weight_file_header(tensors, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(_size(*tensor) for tensor in tensors.values()))


def write_sparse_shards(folder: Path, stem: str, shapes: Shapes, count: int, dtype: str = "F32") -> None:
    """Write sparse safetensors files in `count` shards with an index, as save_pretrained does."""
    names = sorted(shapes)
    weight_map: dict[str, str] = {}
    for number in range(count):
        part = names[number::count]
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        write_sparse(folder / file, {name: shapes[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(_size(dtype, shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_sparse_pickle(path: Path, shapes: Shapes) -> None:
    """Write a .bin file as torch.save does, with sparse storages."""
    import torch

    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape) for name, shape in shapes.items()}, path)


def write_component(folder: Path, component: str, *, variant: str = "", old_names: bool = False) -> None:
    """Write one component's folder: config.json and sparse weights, in fp16 for the variant ".fp16"."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(component)))
    stem, _ = weight_stems(COMPONENTS[component].folder)
    shapes = published_shapes(component, old_names=old_names)
    write_sparse(folder / f"{stem}{variant}.safetensors", shapes, "F16" if variant else "F32")


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    size = BY_STORED[dtype].size
    for axis in shape:
        size *= axis
    return size
