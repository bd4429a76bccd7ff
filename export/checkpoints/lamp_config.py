# SPDX-License-Identifier: Apache-2.0
"""The configuration of a LAMP UNet, read without loading torch."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lamp_trt.engine.errors import CheckpointError

logger = logging.getLogger("lamp_trt")


@dataclass(frozen=True)
class LampUNetConfig:
    """The fields of an official `unet/config.json` that define the network, with the official defaults.

    `attention_head_dim` is the NUMBER of heads (the name is diffusers 0.11's), one for all blocks or one per
    block: Stable Diffusion v1.4's heads have width 40, 80, 160 and 160.
    """

    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        blocks = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
            types = getattr(self, name)
            if len(types) != blocks or not set(types) <= known.keys():
                raise CheckpointError(
                    f"unet config: {name} is {list(types)}, expected {blocks} (one for each of "
                    f"block_out_channels) of {', '.join(known)}"
                )
        if len(self.heads) != blocks:
            raise CheckpointError(
                f"unet config: attention_head_dim lists {len(self.heads)} values for {blocks} blocks"
            )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % heads or channels % self.norm_num_groups:
                raise CheckpointError(
                    f"unet config: {channels} channels are not divisible into {heads} heads and "
                    f"{self.norm_num_groups} norm groups"
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each block."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return self.attention_head_dim

    @property
    def time_embedding_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "LampUNetConfig":
        """Read the content of a `config.json`.

        As in the official loader, missing fields take the class's defaults, and unknown ones are ignored with
        a warning. Raises CheckpointError for options that would make a different network.
        """
        class_name = config.get("_class_name", "UNet3DConditionModel")
        if class_name != "UNet3DConditionModel":
            raise CheckpointError(
                f"unet config: _class_name is {class_name!r:.200}, expected 'UNet3DConditionModel' (a LAMP "
                "checkpoint); give the `unet` folder that LAMP's training wrote, not Stable Diffusion's"
            )
        for name, value in FIXED_OPTIONS.items():
            if config.get(name, value) != value:
                raise CheckpointError(
                    f"unet config: {name} is {config[name]!r:.200}, only {value!r} is supported"
                )
        names = {field.name for field in fields(cls)}
        known = names | FIXED_OPTIONS.keys() | IGNORED_OPTIONS
        unknown = {name for name in config if name not in known and not name.startswith("_")}
        if unknown:
            logger.warning("unet config: ignoring unknown fields %.500s", ", ".join(sorted(unknown)))
        return cls(**{name: _checked(name, config[name]) for name in names & config.keys()})


DOWN_BLOCK_TYPES = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}
UP_BLOCK_TYPES = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}
"""Block type → whether it has attention."""

FIXED_OPTIONS: dict[str, Any] = {
    "act_fn": "silu",
    "class_embed_type": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}
"""Options of the official class with the only supported value, that of Stable Diffusion v1."""

IGNORED_OPTIONS = {
    "sample_size",  # the training resolution: the network takes any
    "use_temp",  # stored by the official layers and never read
}


def _checked(name: str, value: Any) -> Any:
    """The value of a config field, lists as tuples. Raises CheckpointError if it has another type."""
    default = LampUNetConfig.__dataclass_fields__[name].default
    value = tuple(value) if isinstance(value, list) else value
    items = value if isinstance(value, tuple) else (value,)
    item_type = type(default[0]) if isinstance(default, tuple) else type(default)
    may_list = isinstance(default, tuple) or name == "attention_head_dim"
    must_list = isinstance(default, tuple)
    if (
        not items
        or any(type(item) is not item_type for item in items)
        or isinstance(value, tuple) not in (may_list, must_list)
        or (item_type is int and name != "freq_shift" and min(items) < 1)
    ):
        raise CheckpointError(f"unet config: {name} is {value!r:.200}, expected a value like {default!r}")
    return value
