# SPDX-License-Identifier: Apache-2.0
"""Rejection of VAEs of other model families, which would build but give wrong colours."""

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.files import DEFAULT_SCALING_FACTOR, ComponentFiles

LATENT_CHANNELS = 4


def check_vae(files: ComponentFiles, family: str, scaling_factor: float) -> None:
    """Raise CheckpointError for a VAE whose latents are not those of `family`: with another number of
    channels, shifted, normalised, or with another scaling factor than `scaling_factor`."""
    config = files.config
    problem = ""
    channels = config.get("latent_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        problem = f"has latents of {channels!r:.50} channels, {family}'s have {LATENT_CHANNELS}"
    elif config.get("shift_factor") not in (None, 0):
        problem = f"shifts latents by shift_factor {config['shift_factor']!r:.50}, which {family} does not"
    elif any(config.get(name) is not None for name in ("latents_mean", "latents_std")):
        problem = f"normalises latents by latents_mean, which {family} does not"
    elif abs(config.get("scaling_factor", DEFAULT_SCALING_FACTOR) - scaling_factor) > 1e-6:
        given = config.get("scaling_factor", f"{DEFAULT_SCALING_FACTOR} (diffusers' default, not given)")
        problem = f"scales latents by {given}, {family} by {scaling_factor}"
    if problem:
        raise CheckpointError(
            f"{files.folder} {problem}: it belongs to a model of another family. Give {family}'s own folder."
        )
