# SPDX-License-Identifier: Apache-2.0
"""A UNet to be proven on a GPU, and what its checks share: checkpoints, bundle, inputs, reference."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from lamp_trt.benchmarks.proof import gpu
from lamp_trt.benchmarks.proof.check import Unavailable, require_diffusers
from lamp_trt.benchmarks.proof.prepared.locks import locked
from lamp_trt.benchmarks.proof.random_checkpoints import finished, write_lamp_unet, write_sdxl_unet
from lamp_trt.benchmarks.verify.composed_engine import original_inputs
from lamp_trt.benchmarks.verify.network_inputs import seeded_inputs
from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic
from lamp_trt.benchmarks.verify.reference.networks import reference_outputs
from lamp_trt.engine import families
from lamp_trt.engine.backends.contract import DeviceEngine
from lamp_trt.engine.bundle.paths import ENGINES
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.precompute import hoisted_from
from lamp_trt.export import published
from lamp_trt.export.convert import DTYPES
from lamp_trt.export.recipe import BuildOptions
from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.cuda.device import Device

FULL_SIZE: Mapping[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
"""LAMP's UNet over Stable Diffusion v1.4."""

MOTIONS = ("first", "second")

PLAIN = "plain"
"""The form of a UNet with nothing hoisted."""

Array = NDArray[Any]
Config = Mapping[str, Any]
LoadEngine = Callable[[str, "Work", str], DeviceEngine]
"""(backend, work, network) → the engine of a network of the work's bundle."""


@dataclass(frozen=True)
class Subject:
    """A UNet, and how the runtime runs it.

    network          its name in a bundle
    title            its name in claims
    full_size        its config, as in a config.json
    checkpoints      by folder: (folder, config=...) writes one; the first is the reference's
    given            of BuildOptions: which of these folders are what
    motions          of a UNet that has them, the first one shown first
    table, start     what step_table and begin_loop are given at a default job of the runtime
    prompt_in_time   whether the time projections depend on the prompt
    """

    network: str
    title: str
    full_size: Callable[[], Config]
    checkpoints: Mapping[str, Callable[..., object]]
    given: Callable[[Path], dict[str, Any]]
    table: Mapping[str, Any]
    start: Mapping[str, Any]
    motions: tuple[str, ...] = ()
    prompt_in_time: bool = False

    @property
    def motion(self) -> str | None:
        return next(iter(self.motions), None)


def _write_sdxl(folder: Path, config: Config) -> None:
    require_diffusers("SDXL's UNet is exported from a module")
    write_sdxl_unet(folder, config)


LAMP = Subject(
    network=families.LAMP.unet,
    title="the LAMP UNet",
    full_size=lambda: FULL_SIZE,
    checkpoints={name: partial(write_lamp_unet, motion=number) for number, name in enumerate(MOTIONS)},
    given=lambda folder: {"motions": {name: folder / name for name in MOTIONS}},
    table={"guidance_scale": 12.5},
    start={"purpose": Purpose.VIDEO, "base_weight": NOISE_BASE_WEIGHT},
    motions=MOTIONS,
)
SDXL = Subject(
    network=families.SDXL.unet,
    title="SDXL's UNet",
    full_size=lambda: dict(published.SDXL_UNET),
    checkpoints={"sdxl": _write_sdxl},
    given=lambda folder: {"sdxl": folder / "sdxl", "only": (families.SDXL.unet,)},
    table={"guidance_scale": 5.0, "adain": "none", "step_frame_0": True},
    start={"purpose": Purpose.SDXL_LATENTS},
    prompt_in_time=True,
)


@dataclass
class Work:
    """One UNet in one form: what the checks of all backends share.

    load            how a backend's engine is made
    hoist           of engine/precompute.HOISTS, those of its graph
    torch_device    where the reference runs
    config          None: the published one
    height, width   of the video, half of SDXL's image
    build_flags     of BuildRequest, for its engines
    results         figures for the report, by backend
    """

    folder: Path
    device: Device
    load: LoadEngine
    subject: Subject = LAMP
    hoist: tuple[str, ...] = ()
    torch_device: str = "cuda"
    config: Config | None = None
    precision: Precision = "fp16"
    height: int = 320
    width: int = 512
    num_frames: int = 16
    steps: int = 50
    build_flags: Mapping[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    _made: set[Path] = field(default_factory=set)
    _reference: dict[torch.dtype, Array] = field(default_factory=dict)

    def hoisting(self, hoist: tuple[str, ...]) -> "Work":
        """Return the same UNet in another form, with figures of its own."""
        return replace(self, hoist=hoisted_from(self.subject.network, hoist), results={})

    @property
    def form(self) -> str:
        """Such as "plain" or "text,time"."""
        return ",".join(self.hoist) or PLAIN

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the reference."""
        return self.folder / next(iter(self.subject.checkpoints))

    @property
    def options(self) -> BuildOptions:
        """Of the bundle. The LAMP UNet's has two motions over shared weights."""
        return BuildOptions(
            **self.subject.given(self.folder),
            precision=self.precision,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            hoist=self.hoist,
        )

    @property
    def bundle(self) -> Bundle:
        """Made on first use; Unavailable if it cannot be made on this machine."""
        path = self.folder / f"{self.subject.network}-{self.form.replace(',', '-')}"
        if path not in self._made:
            try:
                with locked(self.folder, f"{path.name}-bundle"):
                    self._make(path)
            except ModuleNotFoundError as error:
                raise Unavailable(f"{error.name} is not installed") from error
            self._made.add(path)
        return Bundle.open(path)  # opened again: a link to a file changes its identity

    def inputs(self) -> Mapping[str, Array]:
        """Return seeded arrays for the inputs of the plain UNet; both halves of guidance hold the same
        latents."""
        bundle = self.bundle
        return seeded_inputs(original_inputs(bundle, self.subject.network), bundle.manifest.sizes, seed=0)

    def reference(self, dtype: torch.dtype) -> Array:
        """Return noise_pred of `inputs` by the official modules in PyTorch, float32."""
        if dtype not in self._reference:
            inputs = self.inputs()
            outputs = reference_outputs(
                self.subject.network, self.checkpoint, Arithmetic(dtype), inputs, self.torch_device
            )
            self._reference[dtype] = outputs["noise_pred"]
            gpu.release_cached()
        return self._reference[dtype]

    def _make(self, bundle: Path) -> None:
        from lamp_trt.export.build import build_bundle

        config = self.subject.full_size() if self.config is None else self.config
        for name, write in self.subject.checkpoints.items():
            finished(self.folder / name, partial(write, config=config))
        if self.hoist:
            finished(bundle, partial(_link_files, self.hoisting(()).bundle.path))
        build_bundle(bundle, self.options)


def _link_files(bundle: Path, copy: Path) -> None:
    """Make a second bundle of links to the same files, to be built into another form without a copy of the
    weights."""
    shutil.copytree(bundle, copy, copy_function=os.link, ignore=shutil.ignore_patterns(ENGINES, ".*"))
