# SPDX-License-Identifier: Apache-2.0
"""Counter-based Gaussian noise, equal on CPU and GPU: Philox4x32-10 and Box-Muller.

Block i of frame k of a purpose is philox(counter = (i, 0, k, purpose), key = seed) and gives elements
4i..4i+3 of that frame's flattened (c, h, w). Each value can be computed independently, purposes never share
numbers, and frame k does not depend on the video's length. Philox: Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011.
"""

from enum import IntEnum
from math import prod

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import MAX_SEED, whole_number


class Purpose(IntEnum):
    """The use of random numbers: the fourth counter word."""

    SDXL_LATENTS = 0
    POSTERIOR = 1
    """The VAE posterior sample of the first frame."""
    VIDEO = 2
    PAPER_BASE = 3
    """Preset "paper": the noise that all frames share, drawn separately."""


_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)
_ROUNDS = 10


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10: random bits uint32 (..., 4) from counter uint32 (..., 4) and key uint32 (2,)."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k = key.copy()
    for _ in range(_ROUNDS):
        high0, low0 = _halves(_MULTIPLIERS[0] * c0)
        high1, low1 = _halves(_MULTIPLIERS[1] * c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k[0], low1, high0 ^ c3 ^ k[1], low0
        k += _KEY_STEPS
    return np.stack([c0, c1, c2, c3], axis=-1)


def standard_normal(
    seed: int, purpose: Purpose, num_frames: int, shape_per_frame: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal numbers, float32 (num_frames, *shape_per_frame). Raises InputError for a seed outside
    0..2^64-1."""
    whole_number("seed", seed, 0, MAX_SEED)
    size = prod(shape_per_frame)
    counter = np.zeros((num_frames, -(-size // 4), 4), np.uint32)
    counter[..., 0] = np.arange(counter.shape[1], dtype=np.uint32)
    counter[..., 2] = np.arange(num_frames, dtype=np.uint32)[:, None]
    counter[..., 3] = purpose
    bits = philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))
    normal = _box_muller(bits[..., ::2], bits[..., 1::2])  # (frames, blocks, 2 pairs, 2)
    return normal.reshape(num_frames, -1)[:, :size].reshape(num_frames, *shape_per_frame)


def latent_noise(seed: int, purpose: Purpose, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise for latents (1, c, f, h, w), or (1, c, h, w) as a single frame. Raises InputError for another
    shape."""
    if len(shape) not in (4, 5) or shape[0] != 1:
        raise InputError(f"noise has shape {shape}; expected (1, c, f, h, w) or (1, c, h, w).")
    if len(shape) == 4:
        return standard_normal(seed, purpose, 1, shape[1:])
    frames = standard_normal(seed, purpose, shape[2], (shape[1], *shape[3:]))
    return np.ascontiguousarray(frames.swapaxes(0, 1))[None]


def check_noise(name: str, array: object, shape: tuple[int, ...]) -> None:
    """Raise InputError unless `array`, given as `name`, is a NumPy array of finite floats of this shape."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name}: {kind} was given; expected a NumPy array of floats.")
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; expected {shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity; expected finite numbers.")


def _halves(product: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    return (product >> np.uint64(32)).astype(np.uint32), product.astype(np.uint32)


def _box_muller(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Box-Muller: pairs (r cos, r sin) on a new last axis.

    r = sqrt(-2 ln u), u = (a + 0.5) / 2^32, angle = 2 pi b / 2^32. u, the angle in half turns, r, cos and sin
    are rounded to float32 as on the GPU; the functions are evaluated in float64.
    """
    u = (a.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)  # in (0, 1]
    log_u = np.log(u.astype(np.float64)).astype(np.float32)
    r = np.sqrt(np.float32(-2) * log_u)
    half_turns = b.astype(np.float32) * np.float32(2**-31)
    angle = np.pi * half_turns.astype(np.float64)
    return np.stack([r * np.cos(angle).astype(np.float32), r * np.sin(angle).astype(np.float32)], axis=-1)
