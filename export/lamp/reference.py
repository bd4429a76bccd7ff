# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 of LAMP in plain PyTorch: the reference for exported networks, kernels and loops.

Two presets:
- "official": the published code, step for step, including its deviations (marked below).
- "paper": Algorithm 1 of the supplement to the letter.

A video from end to end: encode_text, encode_first_frame, denoise, frames_from_latents.

Everything is computed in the dtype of the given tensors (float64, float32, float16), with every operation
rounded to it, as in the official code; only the noise schedule is always float32. Frames are numbered from 0,
in the paper from 1: its x_1 is frame 0. Videos are (1, c, f, h, w).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lamp_trt.engine.errors import InputError
from lamp_trt.export.checkpoints.files import DEFAULT_SCALING_FACTOR

Preset = Literal["official", "paper"]
Adain = Literal["none", "first_frame", "schedule"]
NoisePredictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(sample (b, 4, f, h, w), timestep (), text (b, 77, d)) -> noise_pred of sample's shape, as a LampUNet."""

NOISE_BASE_WEIGHT = 0.2
"""Weight of the common noise in every frame's noise; the frame's own has 0.8. Supplement, Algorithm 1."""

ADAIN_EPS = 1e-8
"""Added to the variance. float16 rounds it to 0: a constant channel becomes NaN, as in the official code."""

EARLY_STEPS = {"official": 31, "paper": 29}
"""Number of steps in which frames 2.. are matched to frame 1; afterwards all are matched to frame 0. The
official code tests `i > 30`, the supplement's Algorithm 1 `t > 20` for t = 49..0, and its text says "the
first 30 steps". All are absolute counts: with fewer steps in total, the later matching never starts."""

SCHEDULER_CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "set_alpha_to_one": False,
}
"""Stable Diffusion v1.4's settings; fields of a scheduler_config.json override them. The official pipeline
forces steps_offset 1 and no clipping, so these two fields are not read."""

STEPS_OFFSET = 1


def alphas_cumprod(scheduler_config: Mapping[str, Any] | None = None) -> Tensor:
    """The noise schedule: cumulative product of 1 - beta, float32 (num_train_timesteps,).

    Raises InputError for a schedule that neither Stable Diffusion v1 nor SDXL uses.
    """
    config = {**SCHEDULER_CONFIG, **(scheduler_config or {})}
    for name, supported in (
        ("prediction_type", ("epsilon",)),
        ("trained_betas", (None,)),
        ("beta_schedule", ("scaled_linear", "linear")),
    ):
        if config[name] not in supported:
            raise InputError(f"scheduler: {name} is {config[name]!r:.200}, supported: {supported[0]!r}.")
    power = 0.5 if config["beta_schedule"] == "scaled_linear" else 1.0
    betas = torch.linspace(
        config["beta_start"] ** power, config["beta_end"] ** power, config["num_train_timesteps"]
    ) ** (1 / power)
    return (1 - betas).cumprod(0)


def ddim_tables(
    num_inference_steps: int, scheduler_config: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps int64 (n,), descending, and alphas_cumprod before and after each step, float32 (n,).

    t_i = (n - 1 - i) * (1000 // n) + 1, and step i ends at t_i - 1000 // n. If that is negative, the first
    entry of alphas_cumprod is used instead of 1, so the last step leaves a little noise.
    """
    table = alphas_cumprod(scheduler_config)
    if not 1 <= num_inference_steps < len(table):
        raise InputError(f"num_inference_steps is {num_inference_steps}, expected 1 to {len(table) - 1}.")
    ratio = len(table) // num_inference_steps
    timesteps = torch.arange(num_inference_steps).flip(0) * ratio + STEPS_OFFSET
    final = torch.ones(()) if (scheduler_config or {}).get("set_alpha_to_one", False) else table[0]
    previous = timesteps - ratio
    return timesteps, table[timesteps], torch.where(previous >= 0, table[previous], final)


def mix_noise(noise: Tensor, base_noise: Tensor | None = None) -> Tensor:
    """Shared-noise sampling: frames 1.. become 0.2 base + 0.8 own, frame 0 is unchanged; (1, 4, f, h, w).

    Official: the base is frame 0's slice of the same draw, otherwise unused since frame 0 becomes the clean
    first frame. Supplement: a separate draw, `base_noise` (1, 4, 1, h, w). In both the mix has variance 0.68
    and is not renormalised.
    """
    base = noise[:, :, :1] if base_noise is None else base_noise
    mixed = NOISE_BASE_WEIGHT * base + (1 - NOISE_BASE_WEIGHT) * noise[:, :, 1:]
    return torch.cat([noise[:, :, :1], mixed], dim=2)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """AdaIN: `content` with the mean and standard deviation of `style`, per channel and frame.

    Huang & Belongie 2017, eq. 8, with the unbiased variance over h*w. content (..., h, w), style
    broadcastable to it. Raises InputError for a single pixel, whose variance is undefined.
    """
    if content.numel() == 0:  # short videos: no frame from the second or third on
        return content
    if content.shape[-2:].numel() < 2:
        raise InputError("AdaIN needs at least 2 latent pixels, got 1: use a larger video or adain='none'.")
    mean, std = channel_statistics(content)
    style_mean, style_std = channel_statistics(style)
    return (content - mean) / std * style_std + style_mean


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + 1e-8) over h*w: (..., h, w) -> (..., 1, 1) each."""
    return x.mean((-2, -1), keepdim=True), (x.var((-2, -1), keepdim=True) + ADAIN_EPS).sqrt()


def match_frames(latents: Tensor, *, early: bool, preset: Preset) -> Tensor:
    """Apply the AdaIN of one step, (1, 4, f, h, w) -> the same. Frame 0 is unchanged.

    Early: frames 2.. to frame 1. Late, paper: frames 1.. to frame 0. Late, official: frame 1 to frame 0, then
    frames 2.. to the updated frame 1, which equals the paper's up to rounding.
    """
    if early:
        return torch.cat([latents[:, :, :2], adain(latents[:, :, 2:], latents[:, :, 1:2])], dim=2)
    if preset == "paper":
        return match_to_first_frame(latents)
    first, second = latents[:, :, :1], adain(latents[:, :, 1:2], latents[:, :, :1])
    return torch.cat([first, second, adain(latents[:, :, 2:], second)], dim=2)


def match_to_first_frame(latents: Tensor) -> Tensor:
    """AdaIN of frames 1.. to frame 0, (1, 4, f, h, w) -> the same."""
    return torch.cat([latents[:, :, :1], adain(latents[:, :, 1:], latents[:, :, :1])], dim=2)


def predict_noise(
    unet: NoisePredictor, latents: Tensor, timestep: Tensor, text_embeddings: Tensor, guidance_scale: float
) -> Tensor:
    """The UNet's prediction with guidance e_u + s (e_c - e_u) if s > 1, else the conditional prediction.

    latents (1, 4, f, h, w), text_embeddings [unconditional, conditional] (2, 77, d); returns latents' shape.
    """
    if guidance_scale <= 1:
        return unet(latents, timestep, text_embeddings[-1:])
    unconditional, conditional = unet(torch.cat([latents, latents]), timestep, text_embeddings).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def ddim_step(latents: Tensor, noise_pred: Tensor, alpha_t: Tensor, alpha_prev: Tensor) -> Tensor:
    """One DDIM step (Song et al. 2021, eq. 12 with sigma 0) from alpha_t to alpha_prev.

    The alphas are float32 scalars, which do not change the latents' dtype.
    """
    x0 = (latents - (1 - alpha_t) ** 0.5 * noise_pred) / alpha_t**0.5
    return alpha_prev**0.5 * x0 + (1 - alpha_prev) ** 0.5 * noise_pred


def denoise_step(
    unet: NoisePredictor,
    latents: Tensor,
    text_embeddings: Tensor,
    timestep: Tensor,
    alpha_t: Tensor,
    alpha_prev: Tensor,
    guidance_scale: float,
) -> Tensor:
    """One step of the loop without its AdaIN: prediction, guidance, DDIM of frames 1..; like latents.

    Frame 0 stays clean: the UNet computes a prediction for it, which is discarded.
    """
    noise_pred = predict_noise(unet, latents, timestep, text_embeddings, guidance_scale)
    moved = ddim_step(latents[:, :, 1:], noise_pred[:, :, 1:], alpha_t, alpha_prev)
    return torch.cat([latents[:, :, :1], moved], dim=2)


@torch.no_grad()
def denoise(
    unet: NoisePredictor,
    first_frame_latents: Tensor,
    noise: Tensor,
    text_embeddings: Tensor,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 12.5,
    preset: Preset = "official",
    mix_noise: bool = True,
    base_noise: Tensor | None = None,
    adain: Adain = "schedule",
    adain_switch_step: int | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoise to the latents of a video whose frame 0 is the given first frame.

    first_frame_latents  (1, 4, 1, h, w), clean and scaled: unchanged in every step
    noise                (1, 4, f, h, w), one standard normal draw; with mix_noise=False (editing) a video's
                         inverted latents, of which only frame 0 is replaced
    text_embeddings      (2, 77, d): [unconditional, conditional]
    base_noise           (1, 4, 1, h, w), preset "paper" only; None: the otherwise unused frame 0 of `noise`
    adain                "none" (no AdaIN at all), "first_frame" (to frame 0 from the first step), "schedule"
    adain_switch_step    number of early steps, None for the preset's
    callback             called with (step index, latents) after each step's AdaIN
    returns              (1, 4, f, h, w). Official: after one more AdaIN to frame 0, which only changes the
                         rounding if the last step was a late one, but matters after 31 steps or fewer
    Raises InputError for shapes or settings that do not fit.
    """
    _check_settings(preset, adain, adain_switch_step, base_noise)
    _check_shapes(first_frame_latents, noise, text_embeddings, base_noise)
    early_steps = EARLY_STEPS[preset] if adain_switch_step is None else adain_switch_step
    latents = initial_latents(first_frame_latents, noise, mix=mix_noise, base_noise=base_noise)
    tables = ddim_tables(num_inference_steps, scheduler_config)
    for step, (t, alpha_t, alpha_prev) in enumerate(zip(*tables, strict=True)):
        latents = denoise_step(unet, latents, text_embeddings, t, alpha_t, alpha_prev, guidance_scale)
        if adain != "none":
            early = adain == "schedule" and step < early_steps
            latents = match_frames(latents, early=early, preset=preset)
        if callback is not None:
            callback(step, latents)
    return match_to_first_frame(latents) if preset == "official" and adain != "none" else latents


def initial_latents(
    first_frame_latents: Tensor, noise: Tensor, *, mix: bool = True, base_noise: Tensor | None = None
) -> Tensor:
    """Input of the first step: (mixed) noise whose frame 0 is the clean first frame, (1, 4, f, h, w)."""
    start = mix_noise(noise, base_noise) if mix else noise
    return torch.cat([first_frame_latents, start[:, :, 1:]], dim=2)


@torch.no_grad()
def ddim_inversion(
    unet: NoisePredictor,
    latents: Tensor,
    text_embeddings: Tensor,
    *,
    num_inference_steps: int = 50,
    num_steps: int | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """DDIM inversion: from a video's latents to latents that denoise to it; editing starts from the last.

    latents (1, 4, f, h, w) of a real video, frame 0 treated as any other; text_embeddings (1, 77, d) of the
    empty prompt, without guidance. Runs the first num_steps (None: all) of num_inference_steps steps. Returns
    the input and the result of every step. Official deviation: the network gets the timestep at the end of a
    step together with the latents at its beginning.
    """
    if text_embeddings.ndim != 3 or text_embeddings.shape[0] != latents.shape[0]:
        raise InputError(f"text_embeddings is {tuple(text_embeddings.shape)}, expected (1, tokens, width).")
    num_steps = num_inference_steps if num_steps is None else num_steps
    if not 0 <= num_steps <= num_inference_steps:
        raise InputError(
            f"num_steps is {num_steps}, expected 0 to num_inference_steps {num_inference_steps}."
        )
    trajectory = [latents]
    steps = reversed(list(zip(*ddim_tables(num_inference_steps, scheduler_config), strict=True)))
    for (t, alpha_t, alpha_prev), _ in zip(steps, range(num_steps), strict=False):
        noise_pred = unet(trajectory[-1], t, text_embeddings)
        trajectory.append(ddim_step(trajectory[-1], noise_pred, alpha_t=alpha_prev, alpha_prev=alpha_t))
    return trajectory


@torch.no_grad()
def encode_text(text_encoder: nn.Module, input_ids: Tensor) -> Tensor:
    """Token ids (b, 77) to CLIP's last hidden state (b, 77, d) after its final norm, without padding mask."""
    hidden: Tensor = text_encoder(input_ids=input_ids).last_hidden_state
    return hidden


@torch.no_grad()
def encode_first_frame(
    vae: nn.Module, image: Tensor, posterior_noise: Tensor, scaling_factor: float = DEFAULT_SCALING_FACTOR
) -> Tensor:
    """Image (1, 3, H, W) in [-1, 1] to first-frame latents (1, 4, 1, h, w): a posterior sample, not its mean.

    posterior_noise (1, 4, h, w) is the standard normal draw; zeros give the mean.
    """
    mean, logvar = vae.quant_conv(vae.encoder(image)).chunk(2, dim=1)  # type: ignore[operator]
    sample: Tensor = mean + (0.5 * logvar.clamp(-30, 20)).exp() * posterior_noise
    return (sample * scaling_factor).unsqueeze(2)


@torch.no_grad()
def decode_video(vae: nn.Module, latents: Tensor, scaling_factor: float = DEFAULT_SCALING_FACTOR) -> Tensor:
    """Latents (1, 4, f, h, w) to a video (1, 3, f, H, W) in [0, 1], float32; one frame at a time."""
    frames = [
        vae.decoder(vae.post_quant_conv(frame / scaling_factor))  # type: ignore[operator]
        for frame in latents.unbind(2)
    ]
    return (torch.stack(frames, dim=2) / 2 + 0.5).clamp(0, 1).float()


def frames_from_video(video: Tensor) -> Tensor:
    """Video (1, 3, f, H, W) in [0, 1] to uint8 frames (f, H, W, 3): truncated, as in the official code."""
    return (video[0].permute(1, 2, 3, 0).float() * 255).to(torch.uint8)


def frames_from_latents(
    vae: nn.Module,
    latents: Tensor,
    scaling_factor: float = DEFAULT_SCALING_FACTOR,
    match_histograms: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Decode the result of `denoise`, truncate to uint8 and match histograms; returns (f, H, W, 3).

    match_histograms maps uint8 (f, H, W, 3) to the same and keeps frame 0; None: no matching.
    """
    frames = frames_from_video(decode_video(vae, latents, scaling_factor))
    return frames if match_histograms is None else match_histograms(frames)


def _check_settings(
    preset: str, adain: str, adain_switch_step: int | None, base_noise: Tensor | None
) -> None:
    for name, value, choices in (("preset", preset, Preset), ("adain", adain, Adain)):
        if value not in get_args(choices):
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(get_args(choices))}.")
    if adain_switch_step is not None and adain_switch_step < 0:
        raise InputError(f"adain_switch_step is {adain_switch_step}, expected 0 or more early steps.")
    if base_noise is not None and preset != "paper":
        raise InputError("base_noise is given, but preset 'official' takes frame 0's noise as the base.")


def _check_shapes(
    first_frame_latents: Tensor, noise: Tensor, text_embeddings: Tensor, base_noise: Tensor | None
) -> None:
    if noise.ndim != 5 or noise.shape[0] != 1:
        raise InputError(f"noise is {tuple(noise.shape)}, expected (1, 4, frames, h, w).")
    one_frame = (1, noise.shape[1], 1, *noise.shape[3:])
    for name, tensor in (("first_frame_latents", first_frame_latents), ("base_noise", base_noise)):
        if tensor is not None and tensor.shape != one_frame:
            raise InputError(f"{name} is {tuple(tensor.shape)}, expected {one_frame} to fit the noise.")
    if text_embeddings.ndim != 3 or text_embeddings.shape[0] != 2:
        raise InputError(
            f"text_embeddings is {tuple(text_embeddings.shape)}, expected (2, tokens, width): "
            "unconditional, conditional."
        )
