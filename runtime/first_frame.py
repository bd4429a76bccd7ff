# SPDX-License-Identifier: Apache-2.0
"""The first frame from text: SDXL, denoised by DDIM with the settings that ddim.py pins.

Step for step what diffusers' StableDiffusionXLPipeline does with that scheduler. Source: docs/algorithm.md.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lamp_trt
from lamp_trt.engine.backend import Engine
from lamp_trt.engine.backend_onnxruntime import OnnxRuntimeEngine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.networks import FIRST_FRAME_NETWORKS
from lamp_trt.runtime.config import GenerationConfig, thread_count
from lamp_trt.runtime.ddim import ddim_schedule
from lamp_trt.runtime.histogram import uint8_frames
from lamp_trt.runtime.image import encode_png
from lamp_trt.runtime.loop import Latents, StepCallback, denoise_image, require_finite
from lamp_trt.runtime.noise import Purpose, latent_noise
from lamp_trt.runtime.tokenizer import CLIPTokenizer, load_tokenizer
from lamp_trt.runtime.video import sidecar_path, written

Array = NDArray[Any]

log = logging.getLogger("lamp_trt")

_TOKENIZERS = ("sdxl_tokenizer", "tokenizer_2")


@dataclass(frozen=True, eq=False, repr=False)
class FirstFrame:
    """What SDXL made.

    image: uint8 RGB (h, w, 3). latents: float32 (1, 4, h // 8, w // 8), as they were decoded. timings:
    seconds by stage. settings: what it takes to make the image again; JSON values.
    """

    image: NDArray[np.uint8]
    latents: Latents
    timings: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"FirstFrame({self.image.shape[1]}x{self.image.shape[0]})"

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the image as PNG, and the settings beside it as JSON. InputError as `check_png`."""
        destination = save_png(self.image, path)
        text = json.dumps(self.settings, indent=2, ensure_ascii=False)
        with written(sidecar_path(destination)) as partial:
            partial.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
        return destination


def check_png(path: str | PathLike[str]) -> Path:
    """The path, if an image can be saved there; InputError otherwise."""
    destination = Path(path)
    if destination.suffix.lower() != ".png":
        raise InputError(f"the output {str(path)!r} is no .png file; images are saved as PNG only.")
    if not destination.parent.is_dir():
        raise InputError(f"the folder {str(destination.parent)!r} does not exist; create it first.")
    if destination.is_dir():
        raise InputError(f"the output {str(path)!r} is a folder; choose another name.")
    return destination


def save_png(image: NDArray[np.uint8], path: str | PathLike[str]) -> Path:
    """Writes uint8 RGB (h, w, 3) as PNG. An existing file is replaced."""
    destination = check_png(path)
    with written(destination) as partial:
        partial.write_bytes(encode_png(image))
    return destination


class FirstFrameMaker:
    """The SDXL networks of a bundle, loaded. Not for several threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    ) -> None:
        self.bundle = bundle
        self._engines, self._tokenizers = engines, tokenizers
        assert bundle.manifest.first_frame is not None
        self._origin = bundle.manifest.first_frame

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        sizes = self.bundle.manifest.sizes
        return sizes["first_frame_height"], sizes["first_frame_width"]

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        noise: Array | None = None,
        on_step: StepCallback | None = None,
    ) -> FirstFrame:
        """Make one image.

        negative_prompt  None: all-zero embeddings, or the empty text's, as the checkpoint says
        guidance_scale   <= 1 turns guidance off
        noise            (1, 4, h // 8, w // 8), instead of the seed's
        on_step          see loop.StepCallback
        Raises InputError for arguments, EngineError if a network fails.
        """
        GenerationConfig(
            seed=seed,
            first_frame_num_inference_steps=num_inference_steps,
            first_frame_guidance_scale=guidance_scale,
        )
        schedule = ddim_schedule(num_inference_steps, self._origin.scheduler)
        latents = self._initial_latents(seed, noise)
        start = time.perf_counter()
        hidden_states, text_embeds = self.encode_prompt(prompt, negative_prompt)
        encoded = time.perf_counter()
        conditions = {
            "encoder_hidden_states": hidden_states,
            "text_embeds": text_embeds,
            "time_ids": np.repeat(self.time_ids(), 2, axis=0),
        }
        unet = self._engines["sdxl_unet"]
        latents = denoise_image(unet, latents, conditions, schedule, guidance_scale, on_step)
        denoised = time.perf_counter()
        image = self.decode(latents)
        decoded = time.perf_counter()
        return FirstFrame(
            image,
            latents,
            {
                "text": encoded - start,
                "denoise": denoised - encoded,
                "decode": decoded - denoised,
                "total": decoded - start,
            },
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "seed": seed,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "injected": ["noise"] * (noise is not None),
                "bundle": self.bundle.digest,
                "lamp_trt": lamp_trt.__version__,
            },
        )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> tuple[Array, Array]:
        """What SDXL's UNet is given of the text, [negative, prompt]:

        both encoders' hidden states side by side (2, tokens, width), and text_embeds (2, projection_dim).
        """
        texts = (negative_prompt or "", prompt)
        first, second = self._tokenizers
        one = self._engines["sdxl_text_encoder"].run({"input_ids": prompt_ids(first, texts)})
        two = self._engines["sdxl_text_encoder_2"].run({"input_ids": prompt_ids(second, texts, warn=False)})
        states = [output["penultimate_hidden_state"] for output in (one, two)]
        hidden_states, text_embeds = np.concatenate(states, axis=-1), two["text_embeds"]
        if negative_prompt is None and self._origin.force_zeros_for_empty_prompt:
            hidden_states[0], text_embeds[0] = 0, 0
        require_finite(hidden_states, "a text encoder of SDXL")
        require_finite(text_embeds, "SDXL's second text encoder")
        return hidden_states, text_embeds

    def time_ids(self) -> NDArray[np.float32]:
        """Original size, crop corner and target size, (1, 6): an uncropped image of the size that is made."""
        height, width = self.size
        return np.array([[height, width, 0, 0, height, width]], np.float32)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (1, 4, h, w) to uint8 RGB (height, width, 3), rounded as diffusers does."""
        decoder = self._engines["sdxl_vae_decoder"]
        scaled = latents / np.float32(self.bundle.manifest.scaling_factors["sdxl_vae"])
        image = decoder.run({"latents": scaled.astype(decoder.inputs[0].dtype)})["image"]
        require_finite(image, "SDXL's VAE decoder")
        rounded: NDArray[np.uint8] = uint8_frames(image, "round")[0]
        return rounded

    def _initial_latents(self, seed: int, noise: Array | None) -> Latents:
        sizes = self.bundle.manifest.sizes
        shape = (1, 4, sizes["first_frame_latent_height"], sizes["first_frame_latent_width"])
        if noise is None:
            return latent_noise(seed, Purpose.SDXL_LATENTS, shape)
        if noise.shape != shape:
            raise InputError(f"first_frame_noise has shape {noise.shape}; expected {shape}.")
        return noise.astype(np.float32)


def prompt_ids(tokenizer: CLIPTokenizer, texts: tuple[str, ...], *, warn: bool = True) -> NDArray[np.int64]:
    """Token ids (len(texts), tokens); a text that is too long is cut, with a warning."""
    rows = []
    for text in texts:
        tokenized = tokenizer(text)
        if tokenized.truncated_text and warn:
            log.warning(
                "the prompt is longer than %d tokens; this part of it is cut: %r",
                tokenizer.max_length,
                tokenized.truncated_text,
            )
        rows.append(tokenized.input_ids)
    return np.concatenate(rows)


def missing_networks(bundle: Bundle) -> list[str]:
    """What a bundle lacks to make first frames."""
    return [name for name in FIRST_FRAME_NETWORKS if name not in bundle.manifest.networks]


def load_first_frame_maker(bundle: Bundle, *, num_threads: int | None = None) -> FirstFrameMaker:
    """Load the SDXL networks of an open bundle. BundleError if it lacks any, or changed since it was opened;
    EngineError if one cannot be loaded; InputError for num_threads."""
    num_threads = thread_count(num_threads)
    missing = missing_networks(bundle)
    if missing:
        raise BundleError(
            f"{bundle.path} cannot make first frames, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sdxl DIR --out {bundle.path}"
        )
    engines = {
        name: OnnxRuntimeEngine(bundle, name, num_threads=num_threads) for name in FIRST_FRAME_NETWORKS
    }
    bundle.check_unchanged()
    tokens = bundle.manifest.sizes["tokens"]
    first, second = (load_tokenizer(bundle.tokenizer_folder(name), tokens) for name in _TOKENIZERS)
    return FirstFrameMaker(bundle, engines, (first, second))
