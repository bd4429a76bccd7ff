# SPDX-License-Identifier: Apache-2.0
"""Wrapper modules of the exported networks, with the inputs and outputs that engine/families.py specifies.

A wrapper holds its model as `model`. Apart from this prefix its parameter names are the checkpoint's, so that
a graph can reference the weight files by name.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.engine.dtypes import border_dtype
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import LAMP, SAFETY_CHECKER, SDXL
from lamp_trt.engine.networks import FLOAT, NetworkSpec
from lamp_trt.export.checkpoints.files import ComponentFiles
from lamp_trt.export.checkpoints.tensors import (
    check_tensors,
    clip_from_config,
    diffusers_module_from_config,
    empty_weights,
)
from lamp_trt.export.convert import DTYPES
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.precomputed_unets import (
    HoistedLampUnetNetwork,
    HoistedSdxlUnetNetwork,
    LampTimeProjectionsNetwork,
    SdxlTimeProjectionsNetwork,
    TextKeysValuesNetwork,
)
from lamp_trt.export.lamp.unet import LampUNet, LampUNetConfig
from lamp_trt.export.recipe import Recipe
from lamp_trt.export.safety_network import SafetyCheckerNetwork, safety_checker_from_config


class TextEncoderNetwork(nn.Module):
    """Stable Diffusion's CLIP text model: ids (b, 77) to the last hidden state, after the final norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


class VaeEncoderNetwork(nn.Module):
    """VAE encoder: image (b, 3, H, W) in [-1, 1] to mean and log-variance of the latent posterior.

    Neither is clamped or scaled; the runtime samples.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.model.quant_conv(self.model.encoder(image))  # type: ignore[operator]
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar


class VaeDecoderNetwork(nn.Module):
    """VAE decoder: latents (b, 4, h, w), divided by the scaling factor, to an image in about [-1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        if self.model.post_quant_conv is not None:
            latents = self.model.post_quant_conv(latents)  # type: ignore[operator]
        image: Tensor = self.model.decoder(latents)  # type: ignore[operator]
        return image


class LampUnetNetwork(nn.Module):
    """The LAMP UNet, see lean_unet.py: sample (2, 4, f, h, w) to noise_pred of the same shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        noise_pred: Tensor = self.model(sample, timestep, encoder_hidden_states)
        return noise_pred


class SdxlTextEncoderNetwork(nn.Module):
    """SDXL's first text encoder, CLIP ViT-L: ids (b, 77) to the hidden state that enters the last layer.

    That layer and the final norm are left out: SDXL was trained on the state before them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embeddings = model.embeddings
        self.model.encoder = nn.Module()
        self.model.encoder.layers = model.encoder.layers[:-1]  # type: ignore[union-attr, index]

    def forward(self, input_ids: Tensor) -> Tensor:
        return _run_layers(
            self.model.encoder.layers,  # type: ignore[union-attr, arg-type]
            self.model.embeddings(input_ids=input_ids),  # type: ignore[operator]
        )


class SdxlTextEncoder2Network(nn.Module):
    """SDXL's second text encoder, OpenCLIP ViT-bigG: ids (b, 77) to the hidden state that enters the last
    layer, and to the projected final state of the end-of-text token, (b, projection_dim)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        text_model: Any = self.model.text_model
        penultimate = _run_layers(text_model.encoder.layers[:-1], text_model.embeddings(input_ids=input_ids))
        last = text_model.final_layer_norm(_run_layers(text_model.encoder.layers[-1:], penultimate))
        end = _end_of_text(input_ids, text_model.config.eos_token_id)
        rows = torch.arange(len(end), device=end.device)
        pooled: Tensor = self.model.text_projection(last[rows, end])  # type: ignore[operator]
        return penultimate, pooled


class SdxlUnetNetwork(nn.Module):
    """SDXL's UNet: sample (2, 4, h, w) to noise_pred of the same shape.

    encoder_hidden_states (2, 77, width of both text encoders), text_embeds (2, projection_dim), time_ids
    (2, 6) = [original height, original width, crop top, crop left, target height, target width] in pixels.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        dtype = next(model.parameters()).dtype
        # Its float32 output is otherwise concatenated with text_embeds: promoted in torch, invalid in ONNX.
        model.add_time_proj = _CastOutput(model.add_time_proj, dtype)  # type: ignore[arg-type]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        conditions = {"text_embeds": text_embeds, "time_ids": time_ids}
        noise_pred: Tensor
        (noise_pred,) = self.model(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=conditions, return_dict=False
        )
        return noise_pred


class _CastOutput(nn.Module):
    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out.to(self.dtype)


def _run_layers(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
    """Run CLIP layers with a causal mask, see `use_causal_attention`."""
    for layer in layers:
        hidden = layer(hidden, None, is_causal=True)
    return hidden


def _end_of_text(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Position of the end-of-text token in each row of ids, (b,).

    Published configurations have a wrong eos_token_id of 2; CLIP's is the largest id of the vocabulary.
    """
    ids = input_ids.to(torch.int32)
    if eos_token_id == 2:
        return ids.argmax(dim=-1)
    return (ids == eos_token_id).to(torch.int32).argmax(dim=-1)


def use_causal_attention(model: nn.Module, text_model: nn.Module | None = None) -> nn.Module:
    """Make a CLIP text model compute causal attention without a constant 77x77 mask; returns `model`.

    text_model: the text model inside of `model`, None for `model` itself. The attention is registered under
    a private name, so other models in the process are not affected.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def causal_attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, scaling: float, **__: object
    ) -> tuple[Tensor, None]:
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return attended.transpose(1, 2), None

    AttentionInterface.register("lamp_trt_causal", causal_attention)
    AttentionMaskInterface.register("lamp_trt_causal", lambda *args, **kwargs: None)
    config = (model if text_model is None else text_model).config
    config._attn_implementation = "lamp_trt_causal"  # type: ignore[union-attr]
    return model


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "text_encoder": lambda model: TextEncoderNetwork(use_causal_attention(model)),
    "vae_encoder": VaeEncoderNetwork,
    "vae_decoder": VaeDecoderNetwork,
    LAMP.unet: lambda unet: LampUnetNetwork(make_lean(unet)),
    "lamp_text_keys_values": TextKeysValuesNetwork,
    "lamp_time_projections": LampTimeProjectionsNetwork,
    "sdxl_text_encoder": lambda model: SdxlTextEncoderNetwork(use_causal_attention(model)),
    "sdxl_text_encoder_2": lambda model: SdxlTextEncoder2Network(
        use_causal_attention(model, model.text_model)
    ),
    SDXL.unet: SdxlUnetNetwork,
    "sdxl_vae_decoder": VaeDecoderNetwork,
    "sdxl_text_keys_values": TextKeysValuesNetwork,
    "sdxl_time_projections": SdxlTimeProjectionsNetwork,
    SAFETY_CHECKER: SafetyCheckerNetwork,
}
"""The wrapper of each network. A new network is registered here, its component in MODULES."""

HOISTED_WRAPPERS: dict[str, Callable[[Any, Collection[str]], nn.Module]] = {
    LAMP.unet: lambda unet, hoist: HoistedLampUnetNetwork(make_lean(unet), hoist),
    SDXL.unet: HoistedSdxlUnetNetwork,
}
"""The wrapper of each UNet with hoisted parts."""

MODULES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "text_encoder": lambda config: clip_from_config("text_encoder", config, "CLIPTextModel"),
    "vae": lambda config: diffusers_module_from_config("vae", config, "AutoencoderKL"),
    "unet": lambda config: LampUNet(LampUNetConfig.from_dict(config)),
    "sdxl_text_encoder": lambda config: clip_from_config("text_encoder", config, "CLIPTextModel"),
    "sdxl_text_encoder_2": lambda config: clip_from_config(
        "text_encoder_2", config, "CLIPTextModelWithProjection"
    ),
    "sdxl_unet": lambda config: diffusers_module_from_config("unet", config, "UNet2DConditionModel"),
    "sdxl_vae": lambda config: diffusers_module_from_config("vae", config, "AutoencoderKL"),
    "safety_checker": safety_checker_from_config,
}
"""The function that builds each component's module from its config."""


def module_from_config(component: str, config: Mapping[str, Any]) -> nn.Module:
    """Build a component's module; its state dict has the names and shapes of the component's weights."""
    return MODULES[component](config)


def wrap(network: str, module: nn.Module, hoist: Collection[str] = ()) -> nn.Module:
    """Wrap `module`, of the network's component, as the network to export.

    hoist: names of the parts left out of a UNet's graph, see engine/precompute.py. `module` is modified and
    cannot be used otherwise afterwards.
    """
    if hoist:
        return HOISTED_WRAPPERS[network](module, hoist)
    return WRAPPERS[network](module)


def exported_network(recipe: Recipe, name: str) -> nn.Module:
    """A network of a recipe in the form that is exported: with the inputs and outputs of its spec and the
    uninitialized parameters of `empty_module`."""
    spec = recipe.specs[name]
    precision = recipe.precision_of(spec.component)
    config = recipe.components[spec.component].files.config
    network = empty_network(name, spec.component, config, DTYPES[precision], recipe.hoisted_from(name))
    given = getattr(torch, border_dtype(precision))
    return network if given == DTYPES[precision] else cast_at_borders(network, spec, DTYPES[precision], given)


def cast_at_borders(
    network: nn.Module, spec: NetworkSpec, inside: torch.dtype, outside: torch.dtype
) -> nn.Module:
    """Make `network`, which computes in dtype `inside`, take and return the FLOAT tensors of its spec in
    `outside`. Modifies it in place, which keeps the names of its parameters."""
    floats = [tensor.dtype == FLOAT for tensor in spec.inputs]

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(inputs, floats, strict=True)
        return tuple(tensor.to(inside) if cast else tensor for tensor, cast in pairs)

    def leave(_: nn.Module, inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(outputs, Tensor):
            return outputs.to(outside)
        return tuple(output.to(outside) for output in outputs)

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave)
    return network


def empty_network(
    network: str,
    component: str,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    hoist: Collection[str] = (),
) -> nn.Module:
    """The network with `empty_module`'s parameters, inputs and outputs in their dtype; hoist as in `wrap`."""
    return wrap(network, empty_module(component, config, dtype), hoist)


def empty_module(component: str, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The component's module with uninitialized parameters, whose memory pages are never touched.

    Buffers (position ids, frequency tables) hold values: they become constants of the graph.
    """
    with empty_weights():
        module = module_from_config(component, config)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False))
    return module.eval()


def check_component(files: ComponentFiles) -> None:
    """Raise CheckpointError unless `files` hold exactly the tensors that their config requires."""
    try:
        with torch.device("meta"):  # nothing is allocated, whatever sizes the config names
            module = module_from_config(files.name, files.config)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, transformers and torch have no common error for bad configs
        raise CheckpointError(
            f"{files.folder / 'config.json'} describes no {files.name} that can be built: {error!r:.300}. "
            "Was the file edited?"
        ) from error
    check_tensors(files, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
