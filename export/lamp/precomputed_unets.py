# SPDX-License-Identifier: Apache-2.0
"""UNets without the parts that depend only on the prompt or the timestep, and networks that compute these.

Both have the plain module's parameters under the same names. Inputs and outputs: engine/precompute.py.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.engine.families import LAMP, SDXL
from lamp_trt.engine.precompute import TIME_PROJECTIONS, ConditionLayout, hoisted_specs
from lamp_trt.export.checkpoints.unet_layout import lamp_layout, sdxl_layout
from lamp_trt.export.lamp.lean_unet import LeanAttention, LeanResnetBlock3D
from lamp_trt.export.lamp.unet import LampUNet

KeysValues = Mapping[str, tuple[Tensor, Tensor]]
"""A text attention's path → keys and values (b, heads, tokens, head width)."""
Projections = Mapping[str, Tensor]
"""A ResNet's path → its time projection, added to its channels, (1 or b, channels)."""


class TextKeysValuesNetwork(nn.Module):
    """encoder_hidden_states (b, tokens, d) to the keys and values of every text attention of `unet`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self._attentions = layout_of(unet).attentions
        paths = [f"{path}.{name}" for path in self._attentions for name in ("to_k", "to_v")]
        self.model = parts_of(unet, paths)

    def forward(self, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.unflatten(project(encoder_hidden_states), 2, heads).transpose(1, 2)
            for path, heads in self._attentions.items()
            for project in self.model.get_submodule(path).children()
        )


class _TimeProjectionsNetwork(nn.Module):
    """A time embedding to the projections of every ResNet of `unet`, concatenated in `layout_of`'s order."""

    def __init__(self, unet: nn.Module, embedding_parts: Iterable[str]) -> None:
        super().__init__()
        self._paths = [f"{path}.time_emb_proj" for path in layout_of(unet).projections]
        self.model: Any = parts_of(unet, [*embedding_parts, *self._paths])

    def project(self, time_embedding: Tensor) -> Tensor:
        activated = F.silu(time_embedding)
        return torch.cat([self.model.get_submodule(path)(activated) for path in self._paths], dim=1)


class LampTimeProjectionsNetwork(_TimeProjectionsNetwork):
    """Time projections of the LAMP UNet: timestep (1,) to (1, width)."""

    def __init__(self, unet: LampUNet) -> None:
        super().__init__(unet, ("time_proj", "time_embedding"))

    def forward(self, timestep: Tensor) -> Tensor:
        dtype = self.model.time_embedding.linear_1.weight.dtype
        return self.project(self.model.time_embedding(self.model.time_proj(timestep).to(dtype)))


class SdxlTimeProjectionsNetwork(_TimeProjectionsNetwork):
    """Time projections of SDXL's UNet: timestep (1,), text_embeds (b, projection_dim), time_ids (b, 6) to
    (b, width)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, ("time_proj", "time_embedding", "add_time_proj", "add_embedding"))

    def forward(self, timestep: Tensor, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        return self.project(_embed_sdxl_time(self.model, timestep, text_embeds, time_ids))


class _HoistedUnetNetwork(nn.Module):
    """A UNet with hoisted parts: sample (2, 4, ...) and the inputs named by hoisted_specs to noise_pred."""

    def __init__(self, name: str, unet: nn.Module, hoist: Collection[str]) -> None:
        super().__init__()
        self._layout = layout_of(unet)
        spec = hoisted_specs(name, self._layout, hoist)[name]
        self._conditions = [tensor.name for tensor in spec.inputs[1:]]
        self.model: Any = unet

    def by_name(self, conditions: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], Projections | None, Any]:
        """The conditions by name, the time projections (None if not hoisted), and the text (embeddings, or
        KeysValues if hoisted)."""
        given = dict(zip(self._conditions, conditions, strict=True))
        projections: Projections | None = None
        if TIME_PROJECTIONS in given:
            widths = list(self._layout.projections.values())
            parts = torch.split(given[TIME_PROJECTIONS], widths, dim=1)
            projections = dict(zip(self._layout.projections, parts, strict=True))
        text: Any = given.get("encoder_hidden_states")
        if text is None:
            text = {path: (given[f"{path}.key"], given[f"{path}.value"]) for path in self._layout.attentions}
        return given, projections, text


class HoistedLampUnetNetwork(_HoistedUnetNetwork):
    """The lean LAMP UNet without the parts named by `hoist`; modifies `lean`.

    With "prefix" both halves of sample must be equal, as in classifier-free guidance: the layers before the
    first text attention are computed from the first half only.
    """

    def __init__(self, lean: LampUNet, hoist: Collection[str]) -> None:
        super().__init__(LAMP.unet, lean, hoist)
        self._videos = 1 if "prefix" in hoist else None
        if "text" in hoist:
            for path in self._layout.attentions:
                _replace_class(lean.get_submodule(path), _GivenKeysValues, path, ("to_k", "to_v"))
        if "time" in hoist:
            del lean.time_embedding
            for path in self._layout.projections:
                _replace_class(lean.get_submodule(path), _GivenProjection, path, ("time_emb_proj",))

    def forward(self, sample: Tensor, *conditions: Tensor) -> Tensor:
        given, time, text = self.by_name(conditions)
        x = sample[: self._videos]
        if time is None:
            time = self.model.embed_time(given["timestep"].expand(x.shape[0]), x.dtype)
        noise_pred: Tensor = self.model.predict(x, time, text)
        return noise_pred


class _GivenKeysValues(LeanAttention):
    path: str

    def keys_values(self, context: KeysValues) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return context[self.path]


class _GivenProjection(LeanResnetBlock3D):
    path: str

    def project_time(self, time_embedding: Projections) -> Tensor:  # type: ignore[override]
        return time_embedding[self.path]


def _replace_class(module: nn.Module, cls: type[nn.Module], path: str, unused: Iterable[str]) -> None:
    """Change the class of `module` to `cls`, set its `path`, and delete its `unused` submodules."""
    for part in unused:
        delattr(module, part)
    module.__class__ = cls
    module.path = path  # type: ignore[assignment]


class HoistedSdxlUnetNetwork(_HoistedUnetNetwork):
    """SDXL's UNet without the parts named by `hoist`; modifies diffusers' UNet2DConditionModel."""

    def __init__(self, unet: nn.Module, hoist: Collection[str]) -> None:
        super().__init__(SDXL.unet, unet, hoist)
        if "text" in hoist:
            for path in self._layout.attentions:
                attention: Any = unet.get_submodule(path)
                del attention.to_k, attention.to_v
                attention.processor = _AttendToGiven(path)
        if "time" in hoist:
            del unet.time_embedding, unet.add_embedding
            for path in self._layout.projections:
                resnet: Any = unet.get_submodule(path)
                resnet.time_emb_proj, resnet.skip_time_act = _Given(path), True

    def forward(self, sample: Tensor, *conditions: Tensor) -> Tensor:
        given, projections, text = self.by_name(conditions)
        time: Any = projections
        if time is None:
            time = _embed_sdxl_time(self.model, given["timestep"], given["text_embeds"], given["time_ids"])
        return self._predict(sample, time, text)

    def _predict(self, x: Tensor, time: Any, text: Any) -> Tensor:
        """Run the blocks as UNet2DConditionModel.forward does, which does not accept mappings itself."""
        unet = self.model
        x = unet.conv_in(x)
        skips = [x]
        for block in unet.down_blocks:
            x, block_skips = block(x, time, **_text_of(block, text))
            skips += block_skips
        x = unet.mid_block(x, time, encoder_hidden_states=text)
        for block in unet.up_blocks:
            count = len(block.resnets)
            own, skips = tuple(skips[-count:]), skips[:-count]
            size = skips[-1].shape[2:] if skips else None
            x = block(x, own, time, upsample_size=size, **_text_of(block, text))
        noise_pred: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return noise_pred


def _text_of(block: Any, text: Any) -> dict[str, Any]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


class _Given(nn.Module):
    """Replacement of a projection module that looks its precomputed output up by path."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def forward(self, computed: Projections) -> Tensor:
        return computed[self._path]


class _AttendToGiven:
    """A processor for diffusers' Attention that takes precomputed keys and values by path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: KeysValues, **_: Any
    ) -> Tensor:
        keys, values = encoder_hidden_states[self._path]
        queries = torch.unflatten(attention.to_q(hidden_states), 2, (attention.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
        return out


def _embed_sdxl_time(unet: Any, timestep: Tensor, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
    """SDXL's time embedding: (1,), (b, projection_dim), (b, 6) -> (b, 4*C0). Sinusoids are fp32."""
    b, dtype = text_embeds.shape[0], text_embeds.dtype
    embedding: Tensor = unet.time_embedding(unet.time_proj(timestep.expand(b)).to(dtype))
    sizes = torch.unflatten(unet.add_time_proj(time_ids.flatten()).to(dtype), 0, (b, -1)).flatten(1)
    added: Tensor = unet.add_embedding(torch.cat([text_embeds, sizes], dim=-1))
    return embedding + added


def layout_of(unet: Any) -> ConditionLayout:
    """The layout of a LampUNet or of SDXL's UNet2DConditionModel."""
    return lamp_layout(unet.config) if isinstance(unet, LampUNet) else sdxl_layout(unet.config)


def parts_of(module: nn.Module, paths: Iterable[str]) -> nn.Module:
    """A module with only the submodules of `module` at `paths`, at the same paths."""
    root = nn.Module()
    for path in paths:
        *owners, name = path.split(".")
        place = root
        for owner in owners:
            if owner not in dict(place.named_children()):
                place.add_module(owner, nn.Module())
            place = place.get_submodule(owner)
        place.add_module(name, module.get_submodule(path))
    return root
