# SPDX-License-Identifier: Apache-2.0
"""A tiny SDXL checkpoint and bundles with it, made once a session."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from toy_fixture import toy_options

from lamp_trt.export.published import SDXL_INDEX, SDXL_SCHEDULER

if TYPE_CHECKING:
    from torch import nn

TEXT_2_CONFIG: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 40,
    "intermediate_size": 96,
    "max_position_embeddings": 77,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "projection_dim": 24,
    "vocab_size": 1538,
}
UNET_CONFIG: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "attention_head_dim": [2, 4],
    "block_out_channels": [16, 32],
    "cross_attention_dim": 32 + 40,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
    "sample_size": 16,
    "transformer_layers_per_block": [1, 2],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 128,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


FIRST_FRAME_SIZE = {"first_frame_height": 96, "first_frame_width": 160}
"""Of another ratio than the toy's video, so that nothing passes with height and width swapped."""


@pytest.fixture(scope="session")
def sdxl(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL base in published form. Shared: tests that change it copy it."""
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl", toy / "sd")


@pytest.fixture(scope="session")
def sdxl_bundle(toy: Path, toy_bundle: Path, sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy_bundle with SDXL's networks. Shared: tests that change a bundle copy it."""
    from lamp_trt.export.build import build_bundle

    out = tmp_path_factory.mktemp("bundle") / "sdxl"
    shutil.copytree(toy_bundle, out)
    build_bundle(out, toy_options(toy, sdxl=sdxl, **FIRST_FRAME_SIZE))
    return out


def write_sdxl(folder: Path, sd: Path) -> Path:
    """`folder` as a published SDXL base, tiny; its first text encoder holds the tensors of `sd`'s."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from diffusers import StableDiffusionXLPipeline as Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    from lamp_trt.export.checkpoints.tensors import load_text_encoder
    from lamp_trt.export.toy.tokenizer import write_tokenizer

    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pipeline = Pipeline(
            vae=AutoencoderKL(**VAE_CONFIG),
            text_encoder=load_text_encoder(sd),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2_CONFIG)),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            unet=tame(UNet2DConditionModel(**UNET_CONFIG)),
            scheduler=EulerDiscreteScheduler.from_config(SDXL_SCHEDULER),
        )
    pipeline.save_pretrained(folder)
    for name, pad_token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        shutil.rmtree(folder / name)  # what was saved is of today's form: one tokenizer.json
        write_tokenizer(folder / name, pad_token=pad_token)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(SDXL_INDEX))
    return folder


def tame(unet: "nn.Module") -> "nn.Module":
    """Damp a random UNet: over 50 steps its rounding errors would otherwise grow without bound."""
    import torch

    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".conv2." in name or "to_out" in name or name.startswith("conv_out"):
                parameter *= 0.3
    return unet
