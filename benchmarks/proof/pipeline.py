# SPDX-License-Identifier: Apache-2.0
"""Checks of the whole pipeline on the GPU, from a prompt to a video: every network at full size, random
weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lamp_trt
from lamp_trt.benchmarks.proof.check import Check, Unavailable, require_diffusers
from lamp_trt.benchmarks.proof.prepared.engines import compile_networks, engine_folder
from lamp_trt.benchmarks.proof.prepared.locks import locked
from lamp_trt.benchmarks.proof.random_checkpoints import (
    finished,
    write_component,
    write_scheduler,
    write_sdxl_index,
)
from lamp_trt.benchmarks.proof.work import LAMP as LAMP_UNET
from lamp_trt.benchmarks.proof.work import MOTIONS
from lamp_trt.benchmarks.proof.work import SDXL as SDXL_UNET
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import SDXL
from lamp_trt.export import published

CHECKPOINTS = "checkpoints"
PROMPT = "a horse runs on the road"


@dataclass
class PipelineProof:
    """One bundle with every network, on one backend."""

    folder: Path
    backend: str
    results: dict[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    _pipe: Any = None

    def checks(self) -> Iterator[Check]:
        yield f"{self.backend}: a full-size bundle builds and loads on the GPU", self.load
        yield f"{self.backend}: prompt to video, twice the same bits, timed", self.text_to_video
        yield f"{self.backend}: image to video, timed", self.image_to_video

    def make_bundle(self) -> str:
        return str(self._bundle().path)

    def compile(self) -> str:
        """The UNets last: they take longest, and other processes may be compiling them."""
        bundle = self._bundle()
        networks = sorted(bundle.manifest.networks, key=lambda name: name.endswith("unet"))
        options, folder = whole_options(self.folder), engine_folder(self.folder, self.flags)
        compile_networks(self.backend, bundle, options, folder, MOTIONS[:1], tuple(networks), self.flags)
        return f"{len(networks)} networks"

    def load(self) -> str:
        self.compile()
        engines = engine_folder(self.folder, self.flags)
        self._pipe = lamp_trt.load(
            self._bundle().path, device="cuda", backend=self.backend, engine_dir=engines
        )
        files = self._pipe.bundle.manifest.files
        return f"{sum(file.size for file in files.values()) / 1e9:.2f} GB in {len(files)} files"

    def text_to_video(self) -> str:
        return self._videos("text to video", {})

    def image_to_video(self) -> str:
        picture = np.random.default_rng(0).integers(0, 256, (320, 512, 3), dtype=np.uint8)
        return self._videos("image to video", {"first_frame": picture})

    def _bundle(self) -> Bundle:
        """Made when it is first asked for."""
        require_diffusers("the VAEs and SDXL's UNet are modules")
        path = self.folder / "whole"
        if not (path / "bundle.json").exists():
            from lamp_trt.export.build import build_bundle

            with locked(self.folder, f"{path.name}-bundle"):
                write_checkpoints(self.folder)
                build_bundle(path, whole_options(self.folder))
        return Bundle.open(path)

    def _videos(self, what: str, options: dict[str, Any]) -> str:
        if self._pipe is None:
            raise Unavailable("it did not load")
        first, again, third = (self._pipe(PROMPT, seed=1, **options) for _ in range(3))
        np.testing.assert_array_equal(first.frames, again.frames)
        assert np.isfinite(first.latents).all()
        self.results[f"{self.backend} {what}"] = third.timings
        return json.dumps(third.timings)


def whole_options(folder: Path) -> Any:
    """The BuildOptions of the bundle, over what `write_checkpoints` wrote."""
    from lamp_trt.export.recipe import BuildOptions

    made, motions = folder / CHECKPOINTS, {MOTIONS[0]: folder / MOTIONS[0]}
    return BuildOptions(made / "sd", motions, made / "sdxl", precision="fp16")


def write_checkpoints(folder: Path) -> None:
    """Write Stable Diffusion, SDXL and LAMP in published form and size, random: 10 GB. Both UNets are shared
    with the parts that prove them alone."""
    for subject, name in ((LAMP_UNET, MOTIONS[0]), (SDXL_UNET, "sdxl")):
        finished(folder / name, partial(subject.checkpoints[name], config=subject.full_size()))
    finished(folder / CHECKPOINTS, partial(_write_others, unet=folder / "sdxl" / "unet"))


def _write_others(folder: Path, unet: Path) -> None:
    """Write everything except the UNets. unet: SDXL's, which is linked to."""
    from lamp_trt.export.toy.tokenizer import write_tokenizer

    def component(path: Path, name: str) -> None:
        write_component(path, published.config_of(name), published.published_shapes(name))

    sd, sdxl = folder / "sd", folder / "sdxl"
    for name in ("text_encoder", "vae"):
        component(sd / name, name)
    for part in SDXL.components:
        if part.name == SDXL.unet_component:
            sdxl.mkdir(parents=True, exist_ok=True)
            (sdxl / part.folder).symlink_to(unet.resolve())
        else:
            component(sdxl / part.folder, part.name)
    write_tokenizer(sd / "tokenizer")
    write_tokenizer(sdxl / "tokenizer")
    write_tokenizer(sdxl / "tokenizer_2", pad_token="!")
    write_scheduler(sd)
    write_sdxl_index(sdxl)
