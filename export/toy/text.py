# SPDX-License-Identifier: Apache-2.0
"""The toy text encoders: random CLIP text models in which, as in trained ones, no norm is the identity."""

from typing import Any

import torch
from torch import nn

from lamp_trt.export.toy.tokenizer import MODEL_MAX_LENGTH, NUM_TOKENS

TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": MODEL_MAX_LENGTH,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": NUM_TOKENS,
}
"""A tiny CLIP ViT-L text model. As in the published file, its token ids are wrong: CLIP's end of text is the
largest id of a text."""

NORM_VARIATION = 0.1


def make_text_encoder() -> nn.Module:
    """A random CLIPTextModel of transformers, from torch's global generator, no gradients."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model: nn.Module = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER_CONFIG))
    vary_vectors(model)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def vary_vectors(module: nn.Module) -> None:
    """Move every bias and norm weight off its constant initial value, so that tests detect swapped ones."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=NORM_VARIATION)
