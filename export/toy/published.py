# SPDX-License-Identifier: Apache-2.0
"""JSON files of the published folders for the toy checkpoints, and the old tensor names of SD v1.4."""

from lamp_trt.export.toy import lamp as toy_lamp
from lamp_trt.export.toy import sdxl as toy_sdxl
from lamp_trt.export.toy import vae as toy_vae

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SAFETY_MODEL_INDEX = {
    **MODEL_INDEX,
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
"""Of a folder with a safety checker."""

SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": toy_vae.BLOCK_CHANNELS,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": toy_vae.NUM_GROUPS,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""Without scaling_factor, as in Stable Diffusion v1.4's file; readers assume 0.18215."""

_UNET_CONFIG = {
    "act_fn": "silu",
    "attention_head_dim": toy_lamp.CONFIG.attention_head_dim,
    "block_out_channels": toy_lamp.CONFIG.block_out_channels,
    "center_input_sample": False,
    "cross_attention_dim": toy_lamp.CONFIG.cross_attention_dim,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": toy_lamp.CONFIG.layers_per_block,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": toy_lamp.CONFIG.norm_num_groups,
    "out_channels": 4,
    "sample_size": 64,
}

SD_UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    **_UNET_CONFIG,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

LAMP_UNET_CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.11.1",
    **_UNET_CONFIG,
    "class_embed_type": None,
    "down_block_types": toy_lamp.CONFIG.down_block_types,
    "dual_cross_attention": False,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "up_block_types": toy_lamp.CONFIG.up_block_types,
    "upcast_attention": False,
    "use_linear_projection": False,
    "use_temp": True,
}

LAMP_MODEL_INDEX = {
    "_class_name": "LAMPPipeline",
    "_diffusers_version": "0.11.1",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["unet", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SDXL_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SDXL_SCHEDULER_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

SDXL_UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    **toy_sdxl.UNET_CONFIG,
}

SDXL_VAE_CONFIG = {
    **VAE_CONFIG,
    "_diffusers_version": "0.20.0.dev0",
    "force_upcast": True,
    "sample_size": 1024,
    "scaling_factor": toy_sdxl.SCALING_FACTOR,
}

OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae_name(name: str) -> str:
    """A VAE tensor's name in Stable Diffusion v1.4's files: the mid-block attention has older names."""
    if ".attentions." in name:
        for new, old in OLD_VAE_ATTENTION.items():
            name = name.replace(new, old)
    return name
