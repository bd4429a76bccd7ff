# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the gate: y + sigmoid(conv(y) + bias) z, y and z read from any strides.

A program computes PIXELS pixels of one row of an image: it sums the nine taps over blocks of channels in
fp32, then writes all channels. With channels last, loads and stores are contiguous over channels. Taps of
neighbouring rows and pixels come from caches: memory is read 2 times (y, z) and written once.
"""

from typing import Any

import triton
import triton.language as tl

PIXELS, CHANNELS, WARPS = 8, 128, 4
"""Pixels and channels of a tile, and its warps. Not tuned: no GPU has run it."""


@triton.jit  # type: ignore[untyped-decorator]
def gated_sum_kernel(  # type: ignore[no-untyped-def]
    y, z, weight, bias, out,
    height, width, channels, frames,
    y_image, y_channel, y_row, y_column,
    z_video, z_channel, z_frame, z_pixel,
    out_video, out_channel, out_frame, out_pixel,
    w_channel, w_row, w_column,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid: (images * rows, blocks of columns). Strides in elements."""
    row = tl.program_id(0) % height
    image = (tl.program_id(0) // height).to(tl.int64)
    columns = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = columns < width
    products = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        known = c < channels
        for tap in range(9):
            at_row = row + tap // 3 - 1
            at_column = columns + tap % 3 - 1
            there = (at_column >= 0) & (at_column < width) & (at_row >= 0) & (at_row < height)
            place = y + image * y_image + at_row * y_row + at_column[:, None] * y_column
            values = tl.load(place + c[None, :] * y_channel, there[:, None] & known[None, :], 0.0)
            w = tl.load(weight + c * w_channel + (tap // 3) * w_row + (tap % 3) * w_column, known, 0.0)
            products += values.to(tl.float32) * w.to(tl.float32)[None, :]
    logits = tl.sum(products, 1) + tl.load(bias).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-logits))
    video, frame = image // frames, image % frames
    pixels = row * width + columns
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (c < channels)[None, :]
        y_place = y + image * y_image + row * y_row + columns[:, None] * y_column + c[None, :] * y_channel
        z_place = z + video * z_video + frame * z_frame + pixels[:, None] * z_pixel + c[None, :] * z_channel
        own = tl.load(y_place, mask, 0.0).to(tl.float32)
        temporal = tl.load(z_place, mask, 0.0).to(tl.float32)
        result = own + gate[:, None] * temporal
        out_place = out + video * out_video + frame * out_frame
        out_place += pixels[:, None] * out_pixel + c[None, :] * out_channel
        tl.store(out_place, result.to(out.dtype.element_ty), mask)


def enqueue(kernel: Any, y: Any, z: Any, weight: Any, bias: Any, out: Any) -> None:
    """Launch `kernel`: gated_sum_kernel, or what torch or the interpreter made of it. Tensors as in
    convolutions.py, out of z's shape."""
    images, channels, height, width = y.shape
    kernel[(images * height, triton.cdiv(width, PIXELS))](
        y, z, weight, bias, out,
        height, width, channels, z.shape[2],
        *y.stride(), *z.stride(), *out.stride(), *weight.stride()[1:],
        PIXELS=PIXELS, CHANNELS=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
