# SPDX-License-Identifier: Apache-2.0
"""Checks of the whole pipeline on the GPU, from a prompt to a video: every network at full size, random
weights."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lamp_trt
from lamp_trt.benchmarks.proof.check import Check, Unavailable, require_diffusers
from lamp_trt.benchmarks.proof.random_checkpoints import (
    finished,
    write_component,
    write_lamp_unet,
    write_scheduler,
    write_sdxl_index,
)
from lamp_trt.benchmarks.proof.work import FULL_SIZE, MOTIONS
from lamp_trt.engine.families import SDXL
from lamp_trt.export import published

PROMPT = "a horse runs on the road"


@dataclass
class PipelineProof:
    """One bundle with every network, on one backend."""

    folder: Path
    backend: str
    results: dict[str, Any] = field(default_factory=dict)
    _pipe: Any = None

    def checks(self) -> Iterator[Check]:
        yield f"{self.backend}: a full-size bundle builds and loads on the GPU", self.load
        yield f"{self.backend}: prompt to video, twice the same bits, timed", self.text_to_video
        yield f"{self.backend}: image to video, timed", self.image_to_video

    def load(self) -> str:
        require_diffusers("the VAEs and SDXL's UNet are modules")
        bundle = self.folder / "whole"
        if not (bundle / "bundle.json").exists():
            from lamp_trt.export.build import build_bundle
            from lamp_trt.export.recipe import BuildOptions

            made = finished(self.folder / "checkpoints", write_checkpoints)
            motions = {MOTIONS[0]: made / "lamp"}
            build_bundle(bundle, BuildOptions(made / "sd", motions, made / "sdxl", precision="fp16"))
        self._pipe = lamp_trt.load(bundle, device="cuda", backend=self.backend)
        files = self._pipe.bundle.manifest.files
        return f"{sum(file.size for file in files.values()) / 1e9:.2f} GB in {len(files)} files"

    def text_to_video(self) -> str:
        return self._videos("text to video", {})

    def image_to_video(self) -> str:
        picture = np.random.default_rng(0).integers(0, 256, (320, 512, 3), dtype=np.uint8)
        return self._videos("image to video", {"first_frame": picture})

    def _videos(self, what: str, options: dict[str, Any]) -> str:
        if self._pipe is None:
            raise Unavailable("it did not load")
        first, again, third = (self._pipe(PROMPT, seed=1, **options) for _ in range(3))
        np.testing.assert_array_equal(first.frames, again.frames)
        assert np.isfinite(first.latents).all()
        self.results[f"{self.backend} {what}"] = third.timings
        return json.dumps(third.timings)


def write_checkpoints(folder: Path) -> None:
    """Write Stable Diffusion, SDXL and LAMP in published form and size, random, 10 GB: folders sd, sdxl,
    lamp."""
    from lamp_trt.export.toy.tokenizer import write_tokenizer

    def component(path: Path, name: str) -> None:
        write_component(path, published.config_of(name), published.published_shapes(name))

    sd, sdxl = folder / "sd", folder / "sdxl"
    for name in ("text_encoder", "vae"):
        component(sd / name, name)
    for part in SDXL.components:
        component(sdxl / part.folder, part.name)
    write_tokenizer(sd / "tokenizer")
    write_tokenizer(sdxl / "tokenizer")
    write_tokenizer(sdxl / "tokenizer_2", pad_token="!")
    write_scheduler(sd)
    write_sdxl_index(sdxl)
    write_lamp_unet(folder / "lamp", FULL_SIZE)
