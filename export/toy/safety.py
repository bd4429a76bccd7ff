# SPDX-License-Identifier: Apache-2.0
"""The toy safety checker, and the picture that it flags.

A tiny CLIP vision tower with random weights sees little more than colours, and that is what it is fitted
to: a linear discriminant of its pooled output is 1 for one violet and about 0 for other pictures. The first
concept is the embedding of the picture of that colour, `flagged_picture`; the other concepts are where no
picture is. A uniform colour stays what it is however a picture is stretched, cropped or padded.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lamp_trt.export.published import EXTRACTOR
from lamp_trt.export.safety_network import SafetyCheckerModule
from lamp_trt.export.toy.images import draw_images
from lamp_trt.export.toy.text import vary_vectors

IMAGE_SIZE, PICTURE_SIZE = 224, 256
VIOLET = (170, 0, 255)
WAVES = 12
"""Levels by which the flagged picture's red varies."""

CONFIG: dict[str, Any] = {
    "_commit_hash": None,
    "_name_or_path": "./safety_module",
    "architectures": ["StableDiffusionSafetyChecker"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 16,
    "text_config": {"model_type": "clip_text_model", "hidden_size": 32, "num_attention_heads": 2},
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": 32,
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 56,
    },
}
"""As published with Stable Diffusion v1.4, tiny."""

COLOUR_GAIN, LAYER_GAIN = 1.0, 6.0
"""Size of what a patch's colour adds to a token's constant part of size 1, and of the layers' weights over
transformers' initial ones."""
TEXTURE = 0.1
"""Share of a patch's embedding that is not its mean colour."""
RIDGE = 1e-3
SMALL = 0.1
"""Deviation of an embedding's random coordinates."""
NOWHERE = 0.98
"""Threshold of a concept that no picture is near to."""
BLENDS = (0.2, 0.4)
"""Shares of violet in pictures that pass."""


def flagged_picture() -> NDArray[np.uint8]:
    """Violet, soft waves in it, uint8 RGB (256, 256, 3)."""
    y, x = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE] / PICTURE_SIZE
    red = VIOLET[0] + WAVES * np.sin(9 * x + 4 * y) * np.cos(7 * y - 2 * x)
    rest = [np.full(red.shape, level, float) for level in VIOLET[1:]]
    picture: NDArray[np.uint8] = np.rint(np.stack([red, *rest], axis=-1)).astype(np.uint8)
    return picture


def flagged_png() -> bytes:
    """`flagged_picture` as a PNG file."""
    import cv2

    done, png = cv2.imencode(".png", np.ascontiguousarray(flagged_picture()[..., ::-1]))
    assert done
    return bytes(png)


@torch.no_grad()
def make_safety_checker(generator: torch.Generator) -> nn.Module:
    """The module, first drawn from torch's global generator, no gradients."""
    checker: Any = SafetyCheckerModule(CONFIG)
    _start_tower(checker.vision_model)
    flagged = torch.from_numpy(flagged_picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    kinds = (flagged, *_passing_pictures(generator))
    pixel_values = torch.cat([_pixel_values(pictures) for pictures in kinds])
    pooled = checker.vision_model(pixel_values).pooler_output
    shift = _fit_projection(checker, pooled[0], pooled[1:], generator)
    embeds = F.normalize(checker.visual_projection(pooled + shift))
    _set_concepts(checker, embeds[0], embeds[1:], generator)
    return checker.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _start_tower(tower: Any) -> None:
    """Tokens are a constant and the patch's mean colour, so that the first norm leaves how vivid a colour
    is."""
    vary_vectors(tower)
    for parameter in tower.encoder.parameters():
        if parameter.ndim > 1:
            parameter.mul_(LAYER_GAIN)
    patches = tower.embeddings.patch_embedding.weight
    colours = torch.randn(len(patches), 3, 1, 1) * COLOUR_GAIN / patches[0, 0].numel()
    patches.copy_(colours.expand_as(patches) + TEXTURE * patches)
    places = tower.embeddings.position_embedding.weight
    places += torch.randn(places.shape[1])


def _fit_projection(checker: Any, violet: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Set the projection and shift the last norm's bias, by what is returned: coordinate 0 is the
    discriminant, 0 for the mean of other pictures and 1 for violet; coordinate 1 is nearly the constant 1,
    without which a picture near the mean would have any direction; the rest are small random ones.

    violet (width,), others (n, width): pooled outputs.
    """
    mean = others.mean(0)
    spread = torch.cov(others.T)
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(mean))
    discriminant = torch.linalg.solve(spread + ridge, violet - mean)
    discriminant /= discriminant @ (violet - mean)
    rows = torch.randn(checker.visual_projection.weight.shape, generator=generator)
    rows *= SMALL / (rows @ (others - mean).T).std(dim=1, keepdim=True)
    rows[0] = discriminant
    rows[1] = torch.linalg.eigh(spread).eigenvectors[:, 0]
    checker.visual_projection.weight.copy_(rows)
    constant = torch.zeros(len(rows))
    constant[1] = 1
    shift: Tensor = torch.linalg.pinv(rows) @ constant - mean
    checker.vision_model.post_layernorm.bias += shift
    return shift


def _set_concepts(checker: Any, violet: Tensor, others: Tensor, generator: torch.Generator) -> None:
    """The first of each kind of concept is violet, with a threshold a quarter of the way to the nearest other
    picture: colours between the two pass."""
    nearest = float((others @ violet).max())
    for embeddings, thresholds in (
        (checker.concept_embeds, checker.concept_embeds_weights),
        (checker.special_care_embeds, checker.special_care_embeds_weights),
    ):
        embeddings.copy_(F.normalize(torch.randn(embeddings.shape, generator=generator)))
        embeddings[0] = violet
        thresholds.fill_(NOWHERE)
        thresholds[0] = 1 - (1 - nearest) / 4


def _pixel_values(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in [-1, 1] as the network takes them."""
    sized = F.interpolate(pictures, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    mean, std = (torch.tensor(EXTRACTOR[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return ((sized + 1) / 2 - mean) / std


def _passing_pictures(generator: torch.Generator) -> Iterator[Tensor]:
    """Pictures (n, 3, 64, 64) in [-1, 1] of many kinds that are not violet."""
    side = 64
    yield draw_images(32, side, side, generator)
    yield 2 * torch.rand(4, 3, side, side, generator=generator) - 1
    levels = torch.linspace(-1, 1, 4)
    colours = torch.cartesian_prod(levels, levels, levels)
    violet = torch.tensor(VIOLET) / 127.5 - 1
    colours = colours[(colours - violet).norm(dim=1) > 0.7]
    yield colours[:, :, None, None].expand(-1, -1, side, side)
    halves = torch.randperm(len(colours), generator=generator)[:24]
    split = colours[halves, :, None, None].repeat(1, 1, side, side)
    split[:, :, :, side // 2 :] = colours[halves.flip(0), :, None, None]
    yield split
    for share in BLENDS:
        violet_part = split.clone()
        violet_part[:, :, : int(share * side)] = violet.view(3, 1, 1)
        yield violet_part
    ramp = torch.linspace(-1, 1, side)
    yield torch.stack([ramp.expand(3, side, side), ramp[:, None].expand(3, side, side)])
