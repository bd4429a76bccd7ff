# SPDX-License-Identifier: Apache-2.0
"""First frames from text, by SDXL and DDIM with the fixed settings of ddim.py.

Equal, step for step, to diffusers' StableDiffusionXLPipeline with that scheduler. Source: docs/algorithm.md.
This module converts requests to jobs and saves results; stages.py makes the image.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lamp_trt._version import __version__
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, SDXL
from lamp_trt.engine.files.output import written
from lamp_trt.runtime.algorithm.config import file_path, json_text
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.algorithm.noise import check_noise
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.media.image import encode_png
from lamp_trt.runtime.media.tokenizer import CLIPTokenizer, load_tokenizer
from lamp_trt.runtime.media.video import sidecar_path
from lamp_trt.runtime.ops import ImageOps, StepCallback, TokenIds
from lamp_trt.runtime.requests import FirstFrameRequest
from lamp_trt.runtime.safety.check import SafetyPolicy
from lamp_trt.runtime.stages import NO_CONTROL, ImageJob, encode_sdxl_prompt, make_image, with_total

Array = NDArray[Any]

log = logging.getLogger("lamp_trt")

_TOKENIZERS = [component.tokenizer.name for component in SDXL.components if component.tokenizer]


@dataclass(frozen=True, eq=False, repr=False)
class FirstFrame:
    """A first frame made by SDXL.

    image     uint8 RGB (h, w, 3)
    latents   float32 (1, 4, h // 8, w // 8), before decoding
    timings   seconds by stage
    settings  the settings that reproduce the image, as JSON values
    """

    image: NDArray[np.uint8]
    latents: Latents
    timings: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"FirstFrame({self.image.shape[1]}x{self.image.shape[0]})"

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the image as PNG and its settings next to it as JSON. Raises InputError as `check_png`."""
        text = json_text(self.settings)
        destination = check_png(path)
        with written(sidecar_path(destination), destination) as (sidecar, partial):
            sidecar.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
            partial.write_bytes(encode_png(self.image))
        return destination


def check_png(path: str | PathLike[str]) -> Path:
    """The path, if an image can be saved there. Raises InputError otherwise."""
    destination = file_path("the output", path)
    if destination.suffix.lower() != ".png":
        raise InputError(f"the output {str(path)!r} is not a .png file; images are saved as PNG only.")
    if not destination.parent.is_dir():
        raise InputError(f"the folder {str(destination.parent)!r} does not exist; create it first.")
    if destination.is_dir():
        raise InputError(f"the output {str(path)!r} is a folder; choose another name.")
    return destination


def save_png(image: NDArray[np.uint8], path: str | PathLike[str]) -> Path:
    """Write uint8 RGB (h, w, 3) as PNG. An existing file is replaced. Raises InputError as `check_png`."""
    destination = check_png(path)
    with written(destination) as (partial,):
        partial.write_bytes(encode_png(image))
    return destination


class FirstFrameMaker:
    """SDXL of one bundle; a context manager, not thread-safe.

    `load_ops` is called when the first image is made; the loaded networks are then kept.
    """

    def __init__(
        self,
        bundle: Bundle,
        load_ops: Callable[[], ImageOps],
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        cpu_precision: CpuPrecision | None = None,
    ) -> None:
        self.bundle = bundle
        self._load_ops, self._tokenizers = load_ops, tokenizers
        self._cpu_precision = cpu_precision
        self._ops: ImageOps | None = None
        self._closed = False
        self.safety = SafetyPolicy(bundle.manifest)
        """Shared with the pipeline that this belongs to."""
        assert bundle.manifest.first_frame is not None
        self._origin = bundle.manifest.first_frame

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        sizes = self.bundle.manifest.sizes
        return sizes["first_frame_height"], sizes["first_frame_width"]

    @property
    def ops(self) -> ImageOps:
        """SDXL's operations; loads the networks on the first access. Raises InputError after `close`."""
        if self._closed:
            raise InputError("this maker of first frames was closed; load the bundle again.")
        if self._ops is None:
            self._ops = self._load_ops()
        return self._ops

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the networks and their memory; a second call does nothing."""
        self._closed = True
        if self._ops is not None:
            self._ops.close()

    def __call__(
        self,
        request: FirstFrameRequest,
        *,
        on_step: StepCallback | None = None,
        control: Control = NO_CONTROL,
    ) -> FirstFrame:
        """Make one image. on_step: see ops.StepCallback.

        Raises InputError for noise of another shape or a check that the bundle cannot make, SafetyError for
        a refused image, EngineError if a network fails, Cancelled if cancelled.
        """
        job = self.job(request, on_step)
        made = make_image(self.ops, job, control)
        settings = {
            **request.settings(),
            "safety_flagged": made.flagged,
            "cpu_precision": self._cpu_precision,
            "bundle": self.bundle.digest,
            "lamp_trt": __version__,
        }
        return FirstFrame(made.image, made.latents, with_total(made.timings), settings)

    def job(self, request: FirstFrameRequest, on_step: StepCallback | None = None) -> ImageJob:
        """The job of a request. Raises InputError for noise of another shape, or a check that the bundle
        cannot make."""
        if request.noise is not None:
            sizes = self.bundle.manifest.sizes
            shape = (1, 4, sizes["first_frame_latent_height"], sizes["first_frame_latent_width"])
            check_noise("first_frame_noise", request.noise, shape)
        return ImageJob(
            self.prompt_ids(request.prompt, request.negative_prompt),
            self._zero_negative(request.negative_prompt),
            ddim_schedule(request.num_inference_steps, self._origin.scheduler),
            request.guidance_scale,
            request.seed,
            request.noise,
            on_step,
            self.safety.check(request.safety, request.safety_crops),
        )

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> tuple[Array, Array]:
        """Text conditions of SDXL's UNet, see ImageOps.encode_text."""
        ids = self.prompt_ids(prompt, negative_prompt)
        return encode_sdxl_prompt(self.ops, ids, self._zero_negative(negative_prompt))

    def prompt_ids(self, prompt: str, negative_prompt: str | None) -> tuple[TokenIds, TokenIds]:
        """Token ids for each text encoder, (2, tokens): [negative, prompt]."""
        texts = (negative_prompt or "", prompt)
        first, second = self._tokenizers
        return prompt_ids(first, texts), prompt_ids(second, texts, warn=False)

    def _zero_negative(self, negative_prompt: str | None) -> bool:
        return negative_prompt is None and self._origin.force_zeros_for_empty_prompt


def prompt_ids(tokenizer: CLIPTokenizer, texts: tuple[str, ...], *, warn: bool = True) -> TokenIds:
    """Token ids (len(texts), tokens); a text that is too long is cut, with a warning if `warn`."""
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
    """The networks for first frames that a bundle lacks."""
    return [name for name in FIRST_FRAME_NETWORKS if name not in bundle.manifest.networks]


def first_frame_maker(
    bundle: Bundle, load_ops: Callable[[], ImageOps], cpu_precision: CpuPrecision | None = None
) -> FirstFrameMaker:
    """A maker of first frames for an open bundle. Raises BundleError if it lacks any of SDXL's networks."""
    missing = missing_networks(bundle)
    if missing:
        raise BundleError(
            f"{bundle.path} cannot make first frames, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sdxl DIR --out {bundle.path}"
        )
    tokens = bundle.manifest.sizes["tokens"]
    first, second = (load_tokenizer(bundle.tokenizer_folder(name), tokens) for name in _TOKENIZERS)
    return FirstFrameMaker(bundle, load_ops, (first, second), cpu_precision)
