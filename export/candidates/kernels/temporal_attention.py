# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the temporal attention: q, k, v (b, f, L, c) are read directly, and the result is written
in that order.

A program computes PIXELS pixels of one head of one video: all queries stay in registers, keys and values are
loaded frame by frame, with the running maximum and sum of a softmax in fp32. Each value is read once.
"""

from typing import Any

import triton
import triton.language as tl

TILE, WARPS = 128, 4
"""Pixels times channels of a tile, at least one pixel, and its warps. Not tuned: no GPU has run it."""


def tile_pixels(width: int) -> int:
    """width: a power of two, as of the result."""
    return max(1, TILE // width)


@triton.jit  # type: ignore[untyped-decorator]
def temporal_attention_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out,
    frames, pixels, heads, head_width, scale,
    q_video, q_frame, q_pixel, q_channel,
    k_video, k_frame, k_pixel, k_channel,
    v_video, v_frame, v_pixel, v_channel,
    out_video, out_frame, out_pixel, out_channel,
    PIXELS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of pixels * heads, videos), the heads of a block one after another. Strides in elements.
    FRAMES, WIDTH: powers of two, at least the frames and a head's channels."""
    head = tl.program_id(0) % heads
    video = tl.program_id(1).to(tl.int64)
    p = ((tl.program_id(0) // heads) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64)
    f = tl.arange(0, FRAMES)
    d = tl.arange(0, WIDTH)
    c = head * head_width + d
    two = (p < pixels)[:, None] & (d < head_width)[None, :]
    three = two[:, None, :] & (f < frames)[None, :, None]
    places = p[:, None, None] * q_pixel + f[None, :, None] * q_frame + c[None, None, :] * q_channel
    queries = tl.load(q + video * q_video + places, three, 0.0).to(tl.float32) * scale
    highest = tl.full((PIXELS, FRAMES), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS, FRAMES), tl.float32)
    result = tl.zeros((PIXELS, FRAMES, WIDTH), tl.float32)
    for g in range(frames):
        k_place = k + video * k_video + g * k_frame + p[:, None] * k_pixel + c[None, :] * k_channel
        v_place = v + video * v_video + g * v_frame + p[:, None] * v_pixel + c[None, :] * v_channel
        key = tl.load(k_place, two, 0.0).to(tl.float32)
        value = tl.load(v_place, two, 0.0).to(tl.float32)
        score = tl.sum(queries * key[:, None, :], 2)
        higher = tl.maximum(highest, score)
        kept, added = tl.exp(highest - higher), tl.exp(score - higher)
        total = total * kept + added
        result = result * kept[:, :, None] + added[:, :, None] * value[:, None, :]
        highest = higher
    result = result / total[:, :, None]
    out_places = p[:, None, None] * out_pixel + f[None, :, None] * out_frame + c[None, None, :] * out_channel
    tl.store(out + video * out_video + out_places, result.to(out.dtype.element_ty), three)


def enqueue(kernel: Any, q: Any, k: Any, v: Any, out: Any, heads: int) -> None:
    """Launch `kernel`: temporal_attention_kernel, or what torch or the interpreter made of it. Tensors as in
    attention.py, out of q's shape."""
    videos, frames, pixels, channels = q.shape
    width = channels // heads
    block = triton.next_power_of_2(width)
    kernel[(triton.cdiv(pixels, tile_pixels(block)) * heads, videos)](
        q, k, v, out,
        frames, pixels, heads, width, width**-0.5,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(),
        PIXELS=tile_pixels(block), FRAMES=triton.next_power_of_2(frames), WIDTH=block,
        num_warps=WARPS,
    )  # fmt: skip
