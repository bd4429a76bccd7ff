# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet as official training begins with it: Stable Diffusion's UNet with LAMP's layers added."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.lamp.unet import LampUNet, two_dimensional_name


@torch.no_grad()
def inflate(unet: LampUNet, stable_diffusion: Mapping[str, Tensor]) -> None:
    """Load a Stable Diffusion 2-D UNet's state dict into `unet`, and set LAMP's layers as before training.

    conv1d, conv_gate and attn_temp.to_out become zero and norm_temp the identity, so that a video of one
    frame gives the 2-D UNet's output; attn_temp's query, key and value projections keep their values.
    (Official training starts from a random attn_temp.to_out bias, here it is zero.)
    Raises CheckpointError if names do not match.
    """
    wanted = {two_dimensional_name(name) for name in unet.state_dict()} - {None}
    if wanted != stable_diffusion.keys():
        differing = sorted(map(str, wanted ^ stable_diffusion.keys()))
        raise CheckpointError(f"not the 2-D UNet of this configuration: {', '.join(differing[:3])} …")
    for name, parameter in unet.named_parameters():
        source = two_dimensional_name(name)
        if source is not None:
            parameter.copy_(stable_diffusion[source])
        elif "norm_temp" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif "attn_temp" not in name or "to_out" in name:
            parameter.zero_()
