# SPDX-License-Identifier: Apache-2.0
"""Limits on the sizes in a checkpoint's config.json, checked before modules are built from it.

Without limits, a config with a billion layers would make module construction run forever, and one with such
a width would exhaust the memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import CheckpointError

MAX_BLOCKS = 8
"""Maximum number of resolutions of a UNet or VAE; published ones have 3 or 4."""
MAX_LAYERS = 128
"""Maximum number of layers; OpenCLIP ViT-bigG has 32."""
MAX_WIDTH = 2**17
"""Maximum width; CLIP's vocabulary has 49408 entries, the widest layer 10240 channels."""
_MAX_NUMBER = 2**31 - 1

_LAYERS = (
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_hidden_layers",
)
_WIDTHS = (
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "hidden_size",
    "in_channels",
    "intermediate_size",
    "latent_channels",
    "max_position_embeddings",
    "norm_num_groups",
    "num_attention_heads",
    "out_channels",
    "projection_class_embeddings_input_dim",
    "projection_dim",
    "vocab_size",
)
_MAY_BE_NULL = (
    "addition_time_embed_dim",
    "num_attention_heads",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
)
_BY_BLOCK = (
    "attention_head_dim",
    "cross_attention_dim",
    "layers_per_block",
    "num_attention_heads",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
)
"""Fields that hold one value for all blocks or a list with one per block."""


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the field, for sizes outside the limits."""
    for name, value in config.items():
        if any(isinstance(item, int | float) and not abs(item) <= _MAX_NUMBER for item in _leaves(value)):
            raise CheckpointError(f"{path}: {name:.100} is {value!r:.100}, expected numbers below 2^31.")
        if name in _LAYERS or name in _WIDTHS:
            limit = MAX_LAYERS if name in _LAYERS else MAX_WIDTH
            if not _is_size(name, value, limit):
                raise CheckpointError(
                    f"{path}: {name} is {value!r:.100}, expected {_expectation(name, limit)}."
                )
        if name == "scaling_factor" and not (type(value) in (int, float) and value > 0):
            raise CheckpointError(f"{path}: scaling_factor is {value!r:.100}, expected a positive number.")


def _is_size(name: str, value: Any, limit: int) -> bool:
    if value is None:
        return name in _MAY_BE_NULL
    listed = isinstance(value, list)
    if (name == "block_out_channels" and not listed) or (listed and not 1 <= len(value) <= MAX_BLOCKS):
        return False
    if listed and name != "block_out_channels" and name not in _BY_BLOCK:
        return False
    return not isinstance(value, dict) and all(
        type(item) is int and 1 <= item <= limit for item in _leaves(value)
    )


def _expectation(name: str, limit: int) -> str:
    number = f"an integer from 1 to {limit}"
    if name == "block_out_channels":
        return f"a list of at most {MAX_BLOCKS}, each {number}"
    return f"{number}, or a list of at most {MAX_BLOCKS}" if name in _BY_BLOCK else number


def _leaves(value: Any) -> Iterator[Any]:
    """The scalar values in nested lists and objects."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value
