# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules of every network: the libraries' own, and LAMP's in the official formulation.

Stable Diffusion's parts are loaded by transformers and diffusers themselves, not by the code that builds
bundles, so that a mistake of that code shows. A new network needs an entry in REFERENCE_NETWORKS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import LAMP, NETWORKS, SAFETY_CHECKER, SDXL
from lamp_trt.export.checkpoints.files import (
    DEFAULT_SCALING_FACTOR,
    find_component,
    read_json,
)
from lamp_trt.export.checkpoints.scheduler import scheduler_settings
from lamp_trt.export.lamp.unet import load_lamp_unet

Arrays = Mapping[str, NDArray[Any]]


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's scheduler_config.json as published."""
    return scheduler_settings(read_json(folder / "scheduler" / "scheduler_config.json"))


def force_zeros_for_empty_prompt(folder: Path) -> bool:
    """Return whether SDXL takes zeros for a prompt that is not given; True if the checkpoint does not say."""
    index = read_json(folder / "model_index.json")
    return bool(index.get("force_zeros_for_empty_prompt", True))


def scaling_factor(folder: Path) -> float:
    """Return the scaling factor of a checkpoint's VAE latents; DEFAULT_SCALING_FACTOR if missing, as in
    Stable Diffusion v1.4."""
    config = find_component(folder, "vae", parent_only=True).config
    return float(config.get("scaling_factor") or DEFAULT_SCALING_FACTOR)


def prompt_ids(tokenizer_folder: Path, prompts: list[str]) -> NDArray[np.int64]:
    """Return token ids (n, 77) of transformers' CLIPTokenizer, cut and padded as in diffusers' pipelines."""
    from transformers import CLIPTokenizer

    tokenize = published(CLIPTokenizer, tokenizer_folder)
    encoded = tokenize(
        prompts,
        padding="max_length",
        max_length=tokenize.model_max_length,
        truncation=True,
        return_tensors="np",
    )
    return np.asarray(encoded.input_ids, np.int64)


def safety_constants(folder: Path) -> dict[str, list[float]]:
    """The constants of a bundle's SafetyEntry by name, from the checkpoint."""
    checker = load_safety_checker(folder, torch.float32)
    extractor = read_json(folder / "feature_extractor" / "preprocessor_config.json")
    return {
        "image_mean": extractor["image_mean"],
        "image_std": extractor["image_std"],
        "concept_thresholds": checker.concept_embeds_weights.tolist(),  # type: ignore[operator]
        "special_care_thresholds": checker.special_care_embeds_weights.tolist(),  # type: ignore[operator]
    }


@dataclass(frozen=True)
class ReferenceNetwork:
    """Loader and call of the module that a network of the bundle must equal.

    load  makes it from the folder of the component's checkpoint, in a dtype
    run   calls it; inputs by name, outputs in the network's order
    """

    load: Callable[[Path, torch.dtype], nn.Module]
    run: Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, ...]]


def load_text_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load transformers' CLIPTextModel of a Stable Diffusion or SDXL folder."""
    from transformers import CLIPTextModel

    return _pretrained(CLIPTextModel, folder, "text_encoder", dtype=dtype)


def load_text_encoder_2(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load transformers' CLIPTextModelWithProjection of an SDXL folder."""
    from transformers import CLIPTextModelWithProjection

    return _pretrained(CLIPTextModelWithProjection, folder, "text_encoder_2", dtype=dtype)


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load diffusers' AutoencoderKL of a Stable Diffusion folder."""
    from diffusers import AutoencoderKL

    return _pretrained(AutoencoderKL, folder, "vae", torch_dtype=dtype)


def load_sdxl_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load diffusers' AutoencoderKL of an SDXL folder, in fp32 as bundles and diffusers run it at any
    precision."""
    return load_vae(folder, torch.float32)


def load_sdxl_unet(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load diffusers' UNet2DConditionModel of an SDXL folder."""
    from diffusers import UNet2DConditionModel

    return _pretrained(UNet2DConditionModel, folder, "unet", torch_dtype=dtype)


def load_safety_checker(folder: Path, dtype: torch.dtype) -> nn.Module:
    """diffusers' StableDiffusionSafetyChecker of a Stable Diffusion folder: in fp32, as bundles run it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return _pretrained(StableDiffusionSafetyChecker, folder, SAFETY_CHECKER, dtype=torch.float32)


def _pretrained(cls: Any, folder: Path, component: str, **dtype: torch.dtype) -> nn.Module:
    """Load `cls` by its library from folder/component, offline."""
    quiet_libraries()
    files = find_component(folder, component, parent_only=True)
    variant = "fp16" if ".fp16." in files.weight_files[0].name else None
    module: nn.Module = published(cls, files.folder, variant=variant, **dtype)
    return module.requires_grad_(False).eval()


def published(cls: Any, folder: Path, **options: Any) -> Any:
    """Return `cls.from_pretrained(folder)`, offline. CheckpointError for a folder that a build reads and
    the library does not (a byte order mark, safetensors named .bin)."""
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers and diffusers raise errors of many kinds
        raise CheckpointError(
            f"{folder} cannot be read by {cls.__name__}.from_pretrained of "
            f"{cls.__module__.partition('.')[0]}, which the bundle is compared with: {error!s:.300}"
        ) from error


def quiet_libraries() -> None:
    """Turn off progress bars and advice of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def module_inputs(module: nn.Module, arrays: Arrays) -> dict[str, Tensor]:
    """Return `arrays` on the module's device, floats in the module's own dtype except _ALWAYS_FLOAT32."""
    own = next(module.parameters())
    tensors = {name: torch.from_numpy(array).to(own.device) for name, array in arrays.items()}
    return {
        name: tensor.to(own.dtype) if tensor.is_floating_point() and name not in _ALWAYS_FLOAT32 else tensor
        for name, tensor in tensors.items()
    }


def _run_text_encoder(module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (module(input_ids=x["input_ids"]).last_hidden_state,)


def _run_sdxl_text_encoder(module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (module(input_ids=x["input_ids"], output_hidden_states=True).hidden_states[-2],)


def _run_sdxl_text_encoder_2(module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    output = module(input_ids=x["input_ids"], output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds


def _run_vae_encoder(vae: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    moments: Tensor = vae.quant_conv(vae.encoder(x["image"]))  # type: ignore[operator]
    return moments.chunk(2, dim=1)  # diffusers' own posterior would clamp the log-variance


def _run_vae_decoder(vae: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (vae.decode(x["latents"]).sample,)  # type: ignore[operator]


def _run_lamp_unet(unet: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (unet(x["sample"], x["timestep"][0], x["encoder_hidden_states"]),)


def _run_sdxl_unet(unet: nn.Module, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    conditions = {"text_embeds": x["text_embeds"], "time_ids": x["time_ids"]}
    text = x["encoder_hidden_states"]
    return (unet(x["sample"], x["timestep"][0], text, added_cond_kwargs=conditions).sample,)


def _run_safety_checker(checker: Any, x: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance

    embeds = checker.visual_projection(checker.vision_model(x["pixel_values"])[1])
    concepts, special_care = checker.concept_embeds, checker.special_care_embeds
    return cosine_distance(embeds, concepts), cosine_distance(embeds, special_care)  # type: ignore[no-untyped-call]


REFERENCE_NETWORKS: dict[str, ReferenceNetwork] = {
    "text_encoder": ReferenceNetwork(load_text_encoder, _run_text_encoder),
    "vae_encoder": ReferenceNetwork(load_vae, _run_vae_encoder),
    "vae_decoder": ReferenceNetwork(load_vae, _run_vae_decoder),
    LAMP.unet: ReferenceNetwork(load_lamp_unet, _run_lamp_unet),
    "sdxl_text_encoder": ReferenceNetwork(load_text_encoder, _run_sdxl_text_encoder),
    "sdxl_text_encoder_2": ReferenceNetwork(load_text_encoder_2, _run_sdxl_text_encoder_2),
    SDXL.unet: ReferenceNetwork(load_sdxl_unet, _run_sdxl_unet),
    "sdxl_vae_decoder": ReferenceNetwork(load_sdxl_vae, _run_vae_decoder),
    SAFETY_CHECKER: ReferenceNetwork(load_safety_checker, _run_safety_checker),
}


def reference_outputs(
    network: str, folder: Path, arithmetic: Arithmetic, inputs: Arrays, device: str = "cpu"
) -> dict[str, NDArray[np.float32]]:
    """Return the module's outputs by name, float32, computed from `inputs` on `device` by `arithmetic`."""
    entry = REFERENCE_NETWORKS[network]
    module = entry.load(folder, arithmetic.dtype).to(device)
    with torch.inference_mode(), arithmetic.active():
        outputs = entry.run(module, module_inputs(module, inputs))
    tensors = zip(NETWORKS[network].outputs, outputs, strict=True)
    return {tensor.name: output.float().cpu().numpy() for tensor, output in tensors}


_ALWAYS_FLOAT32 = ("timestep", "time_ids")
