# SPDX-License-Identifier: Apache-2.0
"""The linear map from a VAE's latents to colours, fitted at build time for previews of running loops.

Latents of Stable Diffusion's VAEs are nearly a linear function of the mean colour of their 8x8 pixels. The
map is the least-squares fit on PICTURES synthetic pictures, encoded by the checkpoint's own encoder:

    minimize  sum |W z + b - mean colour|^2 + RIDGE * samples * |W|^2

Everything is computed in float64 from the checkpoint's tensors, whatever the bundle's precision, and rounded
to DECIMALS: differences between thread counts and machines, of about 1e-12, do not reach the manifest.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.files import ComponentFiles
from lamp_trt.export.checkpoints.tensors import empty_weights, iter_tensors
from lamp_trt.export.networks import module_from_config

PICTURES, SIZE = 12, 48
"""Number of pictures, and their height and width in pixels: 432 samples for the 15 coefficients, and 6 s of
one core for each of the published VAEs."""
CELL = 8
"""Pixels of one latent along each axis."""
DECIMALS = 3
RIDGE = 1e-3
"""Weight of the penalty. Scaled latents have about unit variance, so it changes W by 0.1 %; it bounds W for a
channel that the pictures hardly move."""

Array = NDArray[np.float64]


def fitted_map(files: ComponentFiles, scaling_factor: float, key: str) -> PreviewEntry:
    """Fit the map of a VAE's checkpoint. Raises CheckpointError if its encoder returns non-finite values."""
    pictures = synthetic_pictures(PICTURES, SIZE)
    latents = encoded(files, pictures) * scaling_factor
    if not np.isfinite(latents).all():
        raise CheckpointError(
            f"the encoder of {files.folder} returns values that are not finite for a plain picture: the "
            "checkpoint is damaged. Fetch it again."
        )
    samples, colours = samples_of(latents), cell_colours(pictures)
    centre, middle = samples.mean(axis=0), colours.mean(axis=0)
    centred = samples - centre
    penalty = RIDGE * len(samples) * np.eye(samples.shape[1])
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (colours - middle)).T
    weights = np.round(weights, DECIMALS) + 0.0  # no negative zeros
    bias = np.round(middle - weights @ centre, DECIMALS) + 0.0
    share = r_squared(samples @ weights.T + bias, colours)
    return PreviewEntry(
        tuple(map(tuple, weights.tolist())), tuple(bias.tolist()), round(share, DECIMALS) + 0.0, key
    )


def synthetic_pictures(count: int, size: int, seed: int = 0) -> Array:
    """Pictures float64 (count, 3, size, size) in [-1, 1]: smooth colours with rectangles of plain colour.

    RandomState's numbers are the same in every version of NumPy.
    """
    random = np.random.RandomState(seed)
    pictures = []
    for _ in range(count):
        corners = random.uniform(-1, 1, (3, 4, 4))
        picture = _enlarged(_enlarged(corners, size).swapaxes(1, 2), size).swapaxes(1, 2)
        for _ in range(4):
            top, left = random.randint(0, size - CELL, 2)
            height, width = random.randint(CELL // 2, size // 2, 2)
            picture[:, top : top + height, left : left + width] = random.uniform(-1, 1, (3, 1, 1))
        pictures.append(picture)
    return np.stack(pictures)


def encoded(files: ComponentFiles, pictures: Array) -> Array:
    """Posterior means float64 (n, 4, h / 8, w / 8), unscaled, of pictures (n, 3, h, w) in [-1, 1].

    Only the encoder's tensors are loaded: 0.3 GB in float64 for the published VAEs.
    """
    with empty_weights():
        vae = module_from_config(files.name, files.config)
    del vae.decoder, vae.post_quant_conv
    wanted = vae.state_dict().keys()
    tensors = {name: tensor.double() for name, tensor in iter_tensors(files) if name in wanted}
    vae.load_state_dict(tensors, assign=True)
    vae.requires_grad_(False).eval()
    means = []
    for picture in torch.from_numpy(pictures):
        moments = vae.quant_conv(vae.encoder(picture[None]))  # type: ignore[operator]
        means.append(moments.chunk(2, dim=1)[0].numpy())
    return np.concatenate(means)


def samples_of(latents: Array) -> Array:
    """Latents (n, 4, h, w) as rows (n * h * w, 4)."""
    return latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])


def cell_colours(pictures: Array) -> Array:
    """The mean colour of each cell of pictures (n, 3, h, w), as rows (n * h / 8 * w / 8, 3)."""
    n, channels, height, width = pictures.shape
    cells = pictures.reshape(n, channels, height // CELL, CELL, width // CELL, CELL)
    return samples_of(cells.mean(axis=(3, 5)))


def r_squared(predicted: Array, colours: Array) -> float:
    """Share of the variance of `colours` (n, 3) that `predicted` explains, over all channels together."""
    residual = np.square(predicted - colours).sum()
    return float(1 - residual / np.square(colours - colours.mean(axis=0)).sum())


def _enlarged(values: Array, size: int) -> Array:
    """`values` (..., n, m) with the last axis interpolated linearly to `size`."""
    places = np.linspace(0, values.shape[-1] - 1, size)
    low = np.minimum(places.astype(int), values.shape[-1] - 2)
    between = places - low
    enlarged: Array = values[..., low] * (1 - between) + values[..., low + 1] * between
    return enlarged
