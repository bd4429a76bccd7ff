# SPDX-License-Identifier: Apache-2.0
"""One wrapper for each exported network: the tensors of engine/networks.py in, the same out.

A wrapper holds its model as `model`; apart from that prefix its parameter names are the checkpoint's, which
is what lets a graph point into the weight files by name.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.export.checkpoint_files import ComponentFiles
from lamp_trt.export.checkpoints import (
    check_tensors,
    empty_weights,
    text_encoder_from_config,
    vae_from_config,
)
from lamp_trt.export.lamp_unet import LampUNet, LampUNetConfig
from lamp_trt.export.lean_unet import make_lean


class TextEncoderNetwork(nn.Module):
    """Stable Diffusion's CLIP text model: ids (b, 77) to the last hidden state after the final norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


class VaeEncoderNetwork(nn.Module):
    """Image (b, 3, H, W) in [-1, 1] to mean and log-variance of the latent posterior, neither clamped nor
    scaled: sampling is the runtime's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.model.quant_conv(self.model.encoder(image))  # type: ignore[operator]
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar


class VaeDecoderNetwork(nn.Module):
    """Latents (b, 4, h, w), already divided by the scaling factor, to an image in about [-1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.model.decoder(self.model.post_quant_conv(latents))  # type: ignore[operator]
        return image


class LampUnetNetwork(nn.Module):
    """The LAMP UNet in its lean formulation: sample (2, 4, f, h, w) to noise_pred of the same shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        noise_pred: Tensor = self.model(sample, timestep, encoder_hidden_states)
        return noise_pred


def use_causal_attention(text_model: nn.Module) -> None:
    """Let a transformers CLIP text model compute causal attention without a baked 77x77 mask.

    Registered under a name of our own, so that other models in the process are untouched.
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
    text_model.config._attn_implementation = "lamp_trt_causal"  # type: ignore[union-attr]


WRAPPERS: Mapping[str, type[nn.Module]] = {
    "text_encoder": TextEncoderNetwork,
    "vae_encoder": VaeEncoderNetwork,
    "vae_decoder": VaeDecoderNetwork,
    "lamp_unet": LampUnetNetwork,
}


def module_from_config(component: str, config: Mapping[str, Any]) -> nn.Module:
    """The module whose state dict a component's weights are."""
    match component:
        case "text_encoder":
            return text_encoder_from_config(config)
        case "vae":
            return vae_from_config(config)
        case "unet":
            return LampUNet(LampUNetConfig.from_dict(config))
    raise ValueError(component)


def wrap(network: str, module: nn.Module) -> nn.Module:
    """`module` (of network's component, with or without weights) as the network that is exported."""
    if network == "text_encoder":
        use_causal_attention(module)
    elif network == "lamp_unet":
        assert isinstance(module, LampUNet)
        module = make_lean(module)
    return WRAPPERS[network](module)


def empty_network(network: str, component: str, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The network with parameters that are allocated but never touched, so that they cost no memory.

    Buffers (position ids, frequency tables) are real: they become constants of the graph.
    """
    with empty_weights():
        module = module_from_config(component, config)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False))
    return wrap(network, module.eval())


def check_component(files: ComponentFiles) -> None:
    """Raise CheckpointError unless `files` hold exactly the tensors that their config asks for."""
    with empty_weights():
        module = module_from_config(files.name, files.config)
    check_tensors(files, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
