# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet with the same parameters and results as `export/lamp/unet.py`, restructured for deployment.

Differences from the official formulation, layer by layer:
- The causal convolution along frames is a (3, 1) Conv2d on the view (b, c, f, h*w) that pads in front only,
  without transposes and without outputs that are discarded.
- Spatial attention projects keys and values of frame 0 only. Neither these nor the text's are repeated for
  every frame: the queries of all frames form one sequence of f*L tokens.
- Tokens stay in the layout (b, f, L, c); the temporal attention moves the frame axis when it splits heads.
- Nearest-neighbour upsampling runs on the 4-D view (b, c*f, h, w).
- Four layers can be written in other forms that are equal in exact arithmetic (export/candidates): `gate`,
  `temporal_conv`, `temporal_attention` and `norm_silu` are attributes, changed by `use_forms`.
- One video may be given for several texts: it is computed once up to the first text attention, whose queries,
  residual and skip tensors are then repeated for every text.
The time embedding, GroupNorms and SiLUs are those of export/lamp/unet.py: native operations on the 5-D video.
"""

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.export.candidates import attention, convolutions, norms
from lamp_trt.export.lamp.unet import (
    Attention,
    BasicTransformerBlock,
    InflatedConv3d,
    LampUNet,
    ResnetBlock3D,
    TemporalAttention,
    Transformer3DModel,
    UpBlock3D,
    Upsample3D,
    fold_frames,
    unfold_frames,
)

Form = Callable[..., Tensor]
"""One of a slot's functions, see export/candidates/registry.py."""


def make_lean(unet: LampUNet) -> LampUNet:
    """A second module with the same parameters (shared, not copied) and results, but fewer operations.

    State-dict names are equal. conv1d weights are (c, c, 3, 1) views of the official (c, c, 3), so that an
    exported graph has a plain Conv weight. Results differ only by the rounding of reordered sums.
    """
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    lean = copy.deepcopy(unet, memo=shared)
    for module in list(lean.modules()):
        if type(module) is InflatedConv3d:
            module.conv1d = _frame_conv2d(module.conv1d)  # type: ignore[assignment]
        module.__class__ = LEAN_CLASSES.get(type(module), type(module))
    return lean


def _frame_conv2d(conv1d: nn.Conv1d) -> nn.Conv2d:
    """A Conv2d over (f, h*w) that shares the parameters of a Conv1d over f."""
    channels = conv1d.out_channels
    conv2d = nn.Conv2d(channels, channels, (3, 1), device="meta", dtype=conv1d.weight.dtype)
    weight = conv1d.weight
    conv2d.weight = nn.Parameter(weight.detach().unsqueeze(-1), requires_grad=weight.requires_grad)
    conv2d.bias = conv1d.bias
    return conv2d.train(conv1d.training)


def use_forms(module: nn.Module, chosen: Mapping[str, Form]) -> None:
    """Set the forms of `module`'s layers, by slot."""
    for layer in module.modules():
        for slot, form in chosen.items():
            if hasattr(type(layer), slot):
                setattr(layer, slot, form)


class LeanInflatedConv3d(InflatedConv3d):
    gate: Form | None = None
    temporal_conv: Form = staticmethod(convolutions.temporal_padded)

    def forward(self, x: Tensor) -> Tensor:
        num_frames = x.shape[2]
        images = self.conv2d(fold_frames(x))  # (b*f, c, h, w)
        size = images.shape[2:]
        if self.gate is None:  # convolutions.gate_convolution, in the order of exported graphs
            gate = self.conv_gate(images).sigmoid().reshape(-1, 1, num_frames, size.numel())  # a view
            y = unfold_frames(images, num_frames).flatten(3)  # (b, c, f, h*w)
            return torch.unflatten(y + gate * self.temporal(y), 3, size)
        z = self.temporal(unfold_frames(images, num_frames).flatten(3))
        return torch.unflatten(self.gate(images, z, self.conv_gate.weight, self.conv_gate.bias), 3, size)

    def temporal(self, y: Tensor) -> Tensor:
        """(b, c, f, h*w) -> the same."""
        return self.temporal_conv(y, self.conv1d.weight, self.conv1d.bias)


class LeanResnetBlock3D(ResnetBlock3D):
    norm_silu: Form = staticmethod(norms.native)

    def normalized(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return self.norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


class LeanUpsample3D(Upsample3D):
    def enlarge(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.unflatten(F.interpolate(x.flatten(1, 2), size, mode="nearest"), 1, x.shape[1:3])


class LeanUpBlock3D(UpBlock3D):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, repeat(skip, x.shape[0])], dim=1)


class LeanAttention(Attention):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (b or 1, f, L, c), context (b, tokens, width), the same for every frame -> (b, f, L, c)."""
        k, v = self.keys_values(context)
        q = repeat(self.split_heads(self.to_q(x).flatten(1, 2)), k.shape[0])
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return torch.unflatten(out, 1, x.shape[1:3])


class LeanTemporalAttention(TemporalAttention):
    temporal_attention: Form = staticmethod(attention.pixels_as_batch)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b, f, L, c) -> the same: every pixel attends over its f frames."""
        out: Tensor = self.to_out(
            self.temporal_attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads)
        )
        return out


class LeanTransformerBlock(BasicTransformerBlock):
    def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens x (b or 1, f, L, c), text (b, 77, d) -> (b, f, L, c)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed[:, 0])
        x = x + self.attn2(self.norm2(x), text)
        x = x + self.ff(self.norm3(x))
        out: Tensor = x + self.attn_temp(self.norm_temp(x))
        return out


class LeanTransformer3DModel(Transformer3DModel):
    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        num_frames, size = x.shape[2], x.shape[3:]
        images = self.proj_in(self.norm(fold_frames(x)))  # (b*f, c, h, w)
        tokens = torch.unflatten(images.flatten(2).transpose(1, 2), 0, (-1, num_frames))  # (b, f, L, c)
        tokens = self.transformer_blocks[0](tokens, text)
        images = self.proj_out(torch.unflatten(tokens.transpose(2, 3).flatten(0, 1), 2, size))
        return x + unfold_frames(images, num_frames)


def repeat(x: Tensor, batch: int) -> Tensor:
    """(batch or 1, ...) -> (batch, ...). Adds no node to the graph if x has the batch already."""
    return x if x.shape[0] == batch else x.expand(batch, *x.shape[1:])


LEAN_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    InflatedConv3d: LeanInflatedConv3d,
    ResnetBlock3D: LeanResnetBlock3D,
    Upsample3D: LeanUpsample3D,
    Attention: LeanAttention,
    TemporalAttention: LeanTemporalAttention,
    BasicTransformerBlock: LeanTransformerBlock,
    Transformer3DModel: LeanTransformer3DModel,
    UpBlock3D: LeanUpBlock3D,
}
