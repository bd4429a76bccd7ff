# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet in plain PyTorch, in the official formulation.

Stable Diffusion's 2-D UNet with a gated causal convolution along frames after every trunk convolution,
first-frame keys and values in the spatial self-attention, and a temporal self-attention at the end of every
transformer block.

State-dict names and their order are those of official LAMP checkpoints (1062 tensors at the size of Stable
Diffusion v1.4). Notation: b videos, c channels, f frames, h x w latent pixels, L = h*w tokens, d the text
width; a video is (b, c, f, h, w). `lean_unet.py` computes the same with fewer operations.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.engine.errors import InputError
from lamp_trt.export.checkpoints.files import find_component
from lamp_trt.export.checkpoints.lamp_config import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES
from lamp_trt.export.checkpoints.lamp_config import LampUNetConfig as LampUNetConfig
from lamp_trt.export.checkpoints.tensors import load_module

TRANSFORMER_NORM_EPS = 1e-6
"""Epsilon of the transformers' GroupNorm; the ResNets and the output use the config's norm_eps (1e-5)."""


def fold_frames(x: Tensor) -> Tensor:
    """(b, c, f, h, w) -> (b*f, c, h, w)."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: Tensor, num_frames: int) -> Tensor:
    """(b*f, c, h, w) -> (b, c, f, h, w)."""
    return torch.unflatten(x, 0, (-1, num_frames)).transpose(1, 2)


class InflatedConv3d(nn.Module):
    """A 2-D convolution of every frame plus a gated causal convolution of its result along frames:

        y = conv2d(x);  z[f] = W0 y[f-2] + W1 y[f-1] + W2 y[f] + bias, zeros before frame 0
        out = y + sigmoid(conv_gate(y)) z,  one gate per pixel and frame, shared by all channels

    The gate scales the temporal branch only: out is not a convex mix of y and z.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.conv_gate = nn.Conv2d(out_channels, 1, 3, padding=1)
        self.conv1d = nn.Conv1d(out_channels, out_channels, 3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, f, h, w) -> (b, c_out, f, h', w')."""
        num_frames = x.shape[2]
        y = self.conv2d(fold_frames(x))
        gate = unfold_frames(self.conv_gate(y).sigmoid(), num_frames)
        y = unfold_frames(y, num_frames)
        return y + gate * self.causal_conv1d(y)

    def causal_conv1d(self, y: Tensor) -> Tensor:
        """conv1d without its last two outputs: it pads two zeros at both ends, so the rest is causal."""
        b, _, f, h, w = y.shape
        pixels = y.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (b*h*w, c, f)
        z: Tensor = self.conv1d(pixels)[..., :f]
        return torch.unflatten(z, 0, (b, h, w)).permute(0, 3, 4, 1, 2)


class ResnetBlock3D(nn.Module):
    """ResNet block. Its GroupNorms see the whole video: statistics over a group's channels, f, h and w."""

    def __init__(self, in_channels: int, out_channels: int, config: LampUNetConfig) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, config.norm_eps)
        self.conv1 = InflatedConv3d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_embedding_dim, out_channels)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, config.norm_eps)
        self.conv2 = InflatedConv3d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            InflatedConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        """(b, c_in, f, h, w), (b, 4*C0) -> (b, c_out, f, h, w)."""
        h: Tensor = self.conv1(self.normalized(self.norm1, x))
        h = h + self.project_time(time_embedding)[:, :, None, None, None]
        h = self.conv2(self.normalized(self.norm2, h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def normalized(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """GroupNorm and SiLU."""
        return F.silu(norm(x))

    def project_time(self, time_embedding: Tensor) -> Tensor:
        """(b, 4*C0) -> (b, c_out)."""
        projected: Tensor = self.time_emb_proj(F.silu(time_embedding))
        return projected


class Downsample3D(nn.Module):
    """Downsampling of h and w by 2; frames are never resampled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = InflatedConv3d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample3D(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = InflatedConv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Upsample to `size` (h', w') by nearest neighbour: twice the input, or one less if the skip tensor's
        size is odd."""
        out: Tensor = self.conv(self.enlarge(x, size))
        return out

    def enlarge(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, (x.shape[2], *size), mode="nearest")


class Attention(nn.Module):
    """Multi-head attention of x (n, tokens, c) to a context (n, context tokens, context width)."""

    def __init__(self, channels: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_width or channels, channels, bias=False)
        self.to_v = nn.Linear(context_width or channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.to_q(x)), *self.keys_values(context)
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (n, heads, context tokens, c / heads)."""
        return self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context))

    def split_heads(self, x: Tensor) -> Tensor:
        """(n, tokens, c) -> (n, heads, tokens, c / heads)."""
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)


class TemporalAttention(Attention):
    """Self-attention over frames at every pixel, without mask or positions: frames have no order."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b*L, f, c) -> the same."""
        return super().forward(x, x)


class GEGLU(nn.Module):
    """GEGLU activation: proj gives values and gates, in this order; gates pass the exact (erf) GELU."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return torch.mul(value, F.gelu(gate))


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # Identity in place of the official Dropout keeps the index of the last Linear.
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """Spatial attention to frame 0, text attention, feed-forward, and finally the temporal attention."""

    def __init__(self, channels: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, text_width)
        self.norm2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.attn_temp = TemporalAttention(channels, heads)
        self.norm_temp = nn.LayerNorm(channels)

    def forward(self, x: Tensor, text: Tensor, num_frames: int) -> Tensor:
        """Tokens x (b*f, L, c), text (b, 77, d) -> (b*f, L, c)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, first_frames(normed, num_frames))
        x = x + self.attn2(self.norm2(x), text.repeat_interleave(num_frames, dim=0))
        x = x + self.ff(self.norm3(x))
        x = torch.unflatten(x, 0, (-1, num_frames)).transpose(1, 2)  # (b, L, f, c)
        x = x + self.attn_temp(self.norm_temp(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.transpose(1, 2).flatten(0, 1)


def first_frames(tokens: Tensor, num_frames: int) -> Tensor:
    """(b*f, L, c) -> the same shape, every frame replaced by frame 0 of its own video.

    The official layer is called "sparse causal", but keys and values come from frame 0 for every frame,
    itself included; the previous frame is not used.
    """
    return tokens[::num_frames].repeat_interleave(num_frames, dim=0)


class Transformer3DModel(nn.Module):
    """Transformer that treats frames as images of the batch, also in its GroupNorm (unlike the ResNets')."""

    def __init__(self, channels: int, heads: int, config: LampUNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [BasicTransformerBlock(channels, heads, config.cross_attention_dim)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """(b, c, f, h, w), (b, 77, d) -> (b, c, f, h, w)."""
        num_frames, size = x.shape[2], x.shape[3:]
        tokens = self.proj_in(self.norm(fold_frames(x))).flatten(2).transpose(1, 2)  # (b*f, L, c)
        tokens = self.transformer_blocks[0](tokens, text, num_frames)
        images = self.proj_out(torch.unflatten(tokens.transpose(1, 2), 2, size))
        return x + unfold_frames(images, num_frames)


class DownBlock3D(nn.Module):
    """`layers_per_block` ResNets, each followed by a transformer if `heads` is given, then a downsampler."""

    def __init__(
        self, in_channels: int, channels: int, heads: int | None, downsample: bool, config: LampUNetConfig
    ) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.attentions = _transformers(layers, channels, heads, config)
        self.resnets = nn.ModuleList(
            ResnetBlock3D(in_channels if i == 0 else channels, channels, config) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample3D(channels)] if downsample else [])

    def forward(self, x: Tensor, time_embedding: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(b, c_in, f, h, w), (b, 4*C0), (b, 77, d) -> the result and the skip tensors, in order."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time_embedding)
            if self.attentions:
                x = self.attentions[i](x, text)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock3D(nn.Module):
    def __init__(self, channels: int, heads: int, config: LampUNetConfig) -> None:
        super().__init__()
        self.attentions = _transformers(1, channels, heads, config)
        self.resnets = nn.ModuleList(ResnetBlock3D(channels, channels, config) for _ in range(2))

    def forward(self, x: Tensor, time_embedding: Tensor, text: Tensor) -> Tensor:
        x = self.resnets[0](x, time_embedding)
        x = self.attentions[0](x, text)
        out: Tensor = self.resnets[1](x, time_embedding)
        return out


class UpBlock3D(nn.Module):
    """`layers_per_block` + 1 ResNets, each on x concatenated with the last remaining skip tensor."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        last_skip_channels: int,
        heads: int | None,
        upsample: bool,
        config: LampUNetConfig,
    ) -> None:
        super().__init__()
        layers = config.layers_per_block + 1
        self.attentions = _transformers(layers, channels, heads, config)
        self.resnets = nn.ModuleList(
            ResnetBlock3D(
                (in_channels if i == 0 else channels) + (last_skip_channels if i == layers - 1 else channels),
                channels,
                config,
            )
            for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample3D(channels)] if upsample else [])

    def forward(self, x: Tensor, time_embedding: Tensor, text: Tensor, skips: list[Tensor]) -> Tensor:
        """(b, c_in, f, h, w), (b, 4*C0), (b, 77, d) -> (b, c, f, h', w'). Pops skip tensors from `skips`."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(self.join(x, skips.pop()), time_embedding)
            if self.attentions:
                x = self.attentions[i](x, text)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[3:])
        return x

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], dim=1)


def _transformers(count: int, channels: int, heads: int | None, config: LampUNetConfig) -> nn.ModuleList:
    """`count` transformers; empty if the block has no attention (heads None)."""
    return nn.ModuleList(
        Transformer3DModel(channels, heads, config) for _ in range(count) if heads is not None
    )


class TimeSinusoid(nn.Module):
    """The sinusoidal embedding of timesteps (b,) -> (b, width) in fp32."""

    def __init__(self, width: int, flip_sin_to_cos: bool, freq_shift: int) -> None:
        super().__init__()
        self.half_width, self.flip_sin_to_cos, self.freq_shift = width // 2, flip_sin_to_cos, freq_shift

    def forward(self, timesteps: Tensor) -> Tensor:
        exponents = torch.arange(self.half_width, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(-math.log(10000) * exponents / (self.half_width - self.freq_shift))
        angles = timesteps.float()[:, None] * frequencies
        waves = [angles.sin(), angles.cos()]
        return torch.cat(waves[::-1] if self.flip_sin_to_cos else waves, dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, embedding_width)
        self.linear_2 = nn.Linear(embedding_width, embedding_width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class LampUNet(nn.Module):
    """conv_in, down blocks, mid block, up blocks, GroupNorm over the whole video, SiLU, conv_out."""

    def __init__(self, config: LampUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.conv_in = InflatedConv3d(config.in_channels, widths[0], 3, padding=1)
        self.time_proj = TimeSinusoid(widths[0], config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_embedding_dim)
        self.down_blocks = nn.ModuleList(
            DownBlock3D(
                in_channels=widths[max(i - 1, 0)],
                channels=widths[i],
                heads=config.heads[i] if DOWN_BLOCK_TYPES[block_type] else None,
                downsample=i != last,
                config=config,
            )
            for i, block_type in enumerate(config.down_block_types)
        )
        # Up block i mirrors down block last - i; its last skip tensor is that block's input.
        self.up_blocks = nn.ModuleList(
            UpBlock3D(
                in_channels=widths[min(last - i + 1, last)],
                channels=widths[last - i],
                last_skip_channels=widths[max(last - i - 1, 0)],
                heads=config.heads[last - i] if UP_BLOCK_TYPES[block_type] else None,
                upsample=i != last,
                config=config,
            )
            for i, block_type in enumerate(config.up_block_types)
        )
        self.mid_block = MidBlock3D(widths[last], config.heads[last], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = InflatedConv3d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor) -> Tensor:
        """Predict the noise in `sample`.

        sample                  (b, 4, f, h, w) in the parameters' dtype; any f, h and w from 1
        timestep                a number or a tensor of integers or floats, () or (1,) for all videos, or (b,)
        encoder_hidden_states   (b, tokens, text width) in the parameters' dtype, one text per video
        returns                 (b, 4, f, h, w)
        Raises InputError if shapes do not fit.
        """
        self._check_inputs(sample, encoder_hidden_states)
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        return self.predict(sample, self.embed_time(timesteps, sample.dtype), encoder_hidden_states)

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """(b,) -> (b, 4*C0). The sinusoid is computed in fp32, then rounded to `dtype`, as officially."""
        embedding: Tensor = self.time_embedding(self.time_proj(timesteps).to(dtype))
        return embedding

    def predict(self, sample: Tensor, time_embedding: Tensor, text: Tensor) -> Tensor:
        """(b, 4, f, h, w), (b, 4*C0), (b, tokens, text width) -> (b, 4, f, h, w)."""
        x = 2 * sample - 1 if self.config.center_input_sample else sample
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, block_skips = block(x, time_embedding, text)
            skips += block_skips
        x = self.mid_block(x, time_embedding, text)
        for block in self.up_blocks:
            x = block(x, time_embedding, text, skips)
        noise_pred: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return noise_pred

    def _check_inputs(self, sample: Tensor, text: Tensor) -> None:
        channels, width = self.config.in_channels, self.config.cross_attention_dim
        if sample.ndim != 5 or sample.shape[1] != channels:
            raise InputError(f"sample is {tuple(sample.shape)}, expected (batch, {channels}, frames, h, w)")
        if text.ndim != 3 or text.shape[0] != sample.shape[0] or text.shape[2] != width:
            raise InputError(
                f"encoder_hidden_states is {tuple(text.shape)}, expected ({sample.shape[0]}, tokens, {width})"
            )


def two_dimensional_name(name: str) -> str | None:
    """Stable Diffusion's name of a LAMP UNet tensor; None for tensors that LAMP added (376 of 1062)."""
    if any(part in ("conv1d", "conv_gate", "attn_temp", "norm_temp") for part in name.split(".")):
        return None
    return name.replace("conv2d.", "")


def load_lamp_unet(folder: str | Path, dtype: torch.dtype = torch.float32) -> LampUNet:
    """Load the LAMP UNet from a `unet` folder or its parent, in eval mode and without gradients.

    Reads config.json and diffusion_pytorch_model.safetensors or else .bin (by the restricted unpickler).
    Raises CheckpointError if the folder is not a LAMP checkpoint or its tensors do not fit its config.
    """
    files = find_component(folder, "unet")
    with torch.device("meta"):
        unet = LampUNet(LampUNetConfig.from_dict(files.config))
    return load_module(unet, files, dtype)
