# SPDX-License-Identifier: Apache-2.0
"""The first frame from text: SDXL, denoised by DDIM with the settings that ddim.py pins.

Step for step what diffusers' StableDiffusionXLPipeline does with that scheduler. Source: docs/algorithm.md.
Here a request becomes a job and a result becomes a file; the work in between is that of ImageStages.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt._version import __version__
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, SDXL
from lamp_trt.engine.files.output import written
from lamp_trt.runtime.algorithm.config import GenerationConfig, file_path, json_text, plain_text
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.noise import check_noise
from lamp_trt.runtime.host.loop import Latents, StepCallback
from lamp_trt.runtime.media.image import encode_png
from lamp_trt.runtime.media.tokenizer import CLIPTokenizer, load_tokenizer
from lamp_trt.runtime.media.video import sidecar_path
from lamp_trt.runtime.stages import ImageJob, ImageStages, MadeImage, TokenIds

Array = NDArray[Any]

log = logging.getLogger("lamp_trt")

_TOKENIZERS = [component.tokenizer.name for component in SDXL.components if component.tokenizer]


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
        text = json_text(self.settings)
        destination = check_png(path)
        with written(sidecar_path(destination), destination) as (sidecar, partial):
            sidecar.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
            partial.write_bytes(encode_png(self.image))
        return destination


def check_png(path: str | PathLike[str]) -> Path:
    """The path, if an image can be saved there; InputError otherwise."""
    destination = file_path("the output", path)
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
    with written(destination) as (partial,):
        partial.write_bytes(encode_png(image))
    return destination


class FirstFrameMaker:
    """A bundle's SDXL half. Not for several threads at once.

    `load_stages` is called when the first image is to be made, and what it loaded is then kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        load_stages: Callable[[], ImageStages],
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    ) -> None:
        self.bundle = bundle
        self._load_stages, self._tokenizers = load_stages, tokenizers
        self._stages: ImageStages | None = None
        assert bundle.manifest.first_frame is not None
        self._origin = bundle.manifest.first_frame

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        sizes = self.bundle.manifest.sizes
        return sizes["first_frame_height"], sizes["first_frame_width"]

    @property
    def stages(self) -> ImageStages:
        """Loaded if they are not yet."""
        if self._stages is None:
            self._stages = self._load_stages()
        return self._stages

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
        job = self.job(
            prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise=noise,
            on_step=on_step,
        )
        return self.first_frame(self.stages.make_image(job), prompt, negative_prompt, job)

    def job(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        noise: Array | None = None,
        on_step: StepCallback | None = None,
    ) -> ImageJob:
        """What `stages` is given for these arguments of a call. Raises InputError."""
        prompt = plain_text("prompt", prompt)
        negative_prompt = None if negative_prompt is None else plain_text("negative_prompt", negative_prompt)
        config = GenerationConfig(
            seed=seed,
            first_frame_num_inference_steps=num_inference_steps,
            first_frame_guidance_scale=guidance_scale,
        )
        if noise is not None:
            sizes = self.bundle.manifest.sizes
            shape = (1, 4, sizes["first_frame_latent_height"], sizes["first_frame_latent_width"])
            check_noise("first_frame_noise", noise, shape)
        return ImageJob(
            self.prompt_ids(prompt, negative_prompt),
            self._zero_negative(negative_prompt),
            ddim_schedule(config.first_frame_num_inference_steps, self._origin.scheduler),
            config.first_frame_guidance_scale,
            config.seed,
            noise,
            on_step,
        )

    def first_frame(
        self, made: MadeImage, prompt: str, negative_prompt: str | None, job: ImageJob
    ) -> FirstFrame:
        """What was made of `job`, with what it takes to make it again."""
        return FirstFrame(
            made.image,
            made.latents,
            made.timings,
            {
                "prompt": plain_text("prompt", prompt),
                "negative_prompt": None
                if negative_prompt is None
                else plain_text("negative_prompt", negative_prompt),
                "seed": job.seed,
                "num_inference_steps": len(job.schedule),
                "guidance_scale": job.guidance_scale,
                "injected": ["noise"] * (job.noise is not None),
                "bundle": self.bundle.digest,
                "lamp_trt": __version__,
            },
        )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> tuple[Array, Array]:
        """What SDXL's UNet is given of the text, see ImageStages.encode_text."""
        ids = self.prompt_ids(prompt, negative_prompt)
        return self.stages.encode_text(ids, self._zero_negative(negative_prompt))

    def prompt_ids(self, prompt: str, negative_prompt: str | None) -> tuple[TokenIds, TokenIds]:
        """Token ids for either text encoder (2, tokens): [negative, prompt]."""
        texts = (negative_prompt or "", prompt)
        first, second = self._tokenizers
        return prompt_ids(first, texts), prompt_ids(second, texts, warn=False)

    def _zero_negative(self, negative_prompt: str | None) -> bool:
        return negative_prompt is None and self._origin.force_zeros_for_empty_prompt


def prompt_ids(tokenizer: CLIPTokenizer, texts: tuple[str, ...], *, warn: bool = True) -> TokenIds:
    """Token ids (len(texts), tokens); a text that is too long is cut, with a warning."""
    rows = []
    for text in texts:
        tokenized = tokenizer(text)
        if tokenized.truncated_text and warn:
            log.warning(
                "the prompt is longer than %d tokens; this part of it is cut: %.1000r",
                tokenizer.max_length,
                tokenized.truncated_text,
            )
        rows.append(tokenized.input_ids)
    return np.concatenate(rows)


def missing_networks(bundle: Bundle) -> list[str]:
    """What a bundle lacks to make first frames."""
    return [name for name in FIRST_FRAME_NETWORKS if name not in bundle.manifest.networks]


def first_frame_maker(bundle: Bundle, load_stages: Callable[[], ImageStages]) -> FirstFrameMaker:
    """The SDXL half of an open bundle. BundleError if it lacks any of those networks."""
    missing = missing_networks(bundle)
    if missing:
        raise BundleError(
            f"{bundle.path} cannot make first frames, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sdxl DIR --out {bundle.path}"
        )
    tokens = bundle.manifest.sizes["tokens"]
    first, second = (load_tokenizer(bundle.tokenizer_folder(name), tokens) for name in _TOKENIZERS)
    return FirstFrameMaker(bundle, load_stages, (first, second))
