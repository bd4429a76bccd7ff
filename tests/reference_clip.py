# SPDX-License-Identifier: Apache-2.0
"""A video of the toy checkpoints as the PyTorch reference makes it, to compare pipelines with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamp_trt.export.checkpoints.tensors import load_text_encoder, load_vae
from lamp_trt.export.lamp import reference
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.runtime.media.image import model_input


def smooth_picture(height: int, width: int) -> np.ndarray:
    """uint8 RGB."""
    y, x = np.mgrid[0:height, 0:width] / height
    waves = [np.sin(5 * x + 3 * y), np.cos(7 * x * y), np.sin(9 * y)]
    return np.rint(127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def reference_clip(
    toy: Path,
    motion: str,
    prompt: str,
    first_frame: np.ndarray,
    noise: np.ndarray,
    posterior_noise: np.ndarray,
    scheduler_config: Mapping[str, Any],
    base_noise: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Final latents (1, 4, f, h, w) and decoded frames (f, 3, H, W), not yet matched, float32; first_frame is
    uint8 of the video's size, everything is computed in `dtype`, settings are those of reference.denoise."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(dtype)

    from transformers import CLIPTokenizer

    vae = load_vae(toy / "sd", dtype)
    ids = CLIPTokenizer.from_pretrained(toy / "sd" / "tokenizer")(
        ["", prompt], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        text = load_text_encoder(toy / "sd", dtype)(input_ids=ids).last_hidden_state
        image = tensor(model_input(first_frame))
        first = reference.encode_first_frame(vae, image, tensor(posterior_noise))
        latents = reference.denoise(
            load_lamp_unet(toy / "motions" / motion, dtype),
            first,
            tensor(noise),
            text,
            base_noise=None if base_noise is None else tensor(base_noise),
            scheduler_config=dict(scheduler_config),
            **settings,
        )
        scaled = latents[0].swapaxes(0, 1).unsqueeze(1) / 0.18215
        frames = [vae.decode(frame).sample for frame in scaled]  # type: ignore[operator]
        return latents.float().numpy(), torch.cat(frames).float().numpy()
