# SPDX-License-Identifier: Apache-2.0
"""Paths and widths of a UNet's text attentions and time projections, computed from its config."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import LAMP, SDXL
from lamp_trt.engine.precompute import ConditionLayout
from lamp_trt.export.checkpoints.lamp_config import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, LampUNetConfig


@dataclass(frozen=True)
class _Level:
    """One resolution. down, up: whether its blocks have attention. depth: transformer blocks in each."""

    down: bool
    up: bool
    channels: int
    heads: int
    depth: int = 1


def condition_layout(component: str, config: Mapping[str, Any]) -> ConditionLayout:
    """The layout of a family's UNet component. Raises CheckpointError for a config of another class."""
    return LAYOUTS[component](config)


def lamp_layout(config: LampUNetConfig) -> ConditionLayout:
    down = (DOWN_BLOCK_TYPES[name] for name in config.down_block_types)
    up = (UP_BLOCK_TYPES[name] for name in reversed(config.up_block_types))
    levels = map(_Level, down, up, config.block_out_channels, config.heads)
    return _layout(list(levels), config.layers_per_block)


def sdxl_layout(config: Mapping[str, Any]) -> ConditionLayout:
    """The layout of SDXL's UNet. Missing fields take the defaults of diffusers' UNet2DConditionModel, which
    names the number of heads attention_head_dim."""
    channels, layers = config["block_out_channels"], config.get("layers_per_block", 2)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    depths = config.get("transformer_layers_per_block", 1)
    heads, depths = ((of,) * len(channels) if isinstance(of, int) else of for of in (heads, depths))
    if not isinstance(layers, int) or not all(isinstance(depth, int) for depth in depths):
        raise CheckpointError(
            f"sdxl unet config: layers_per_block is {layers!r:.200}, transformer_layers_per_block "
            f"{depths!r:.200}; hoisting needs one integer, and one integer per block, as in SDXL base 1.0"
        )
    down = ("CrossAttn" in name for name in config["down_block_types"])
    up = ("CrossAttn" in name for name in reversed(config["up_block_types"]))
    return _layout(list(map(_Level, down, up, channels, heads, depths)), layers)


LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], ConditionLayout]] = {
    LAMP.unet_component: lambda config: lamp_layout(LampUNetConfig.from_dict(config)),
    SDXL.unet_component: sdxl_layout,
}
"""Layout from config, by UNet component."""


def _layout(levels: list[_Level], layers: int) -> ConditionLayout:
    attentions: dict[str, tuple[int, int]] = {}
    projections: dict[str, int] = {}
    for block, level, resnets, transformers in _blocks(levels, layers):
        projections |= {f"{block}.resnets.{i}": level.channels for i in range(resnets)}
        attentions |= {
            f"{block}.attentions.{i}.transformer_blocks.{j}.attn2": (
                level.heads,
                level.channels // level.heads,
            )
            for i in range(transformers)
            for j in range(level.depth)
        }
    return ConditionLayout(attentions, projections)


def _blocks(levels: list[_Level], layers: int) -> Iterator[tuple[str, _Level, int, int]]:
    """Yield path, level, number of ResNets and number of attentions of every block, in execution order."""
    for i, level in enumerate(levels):
        yield f"down_blocks.{i}", level, layers, layers * level.down
    yield "mid_block", levels[-1], 2, 1
    for i, level in enumerate(reversed(levels)):
        yield f"up_blocks.{i}", level, layers + 1, (layers + 1) * level.up
