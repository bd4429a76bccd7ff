# SPDX-License-Identifier: Apache-2.0
"""The contents of a bundle to be built and the key of each file, computed without torch and without weights.

A key is a digest of everything that a file is made from. A build makes only the files whose keys the bundle
does not hold yet, so a repeated build costs little more than this module: digests of unchanged checkpoints
are cached.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lamp_trt._version import __version__
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import FirstFrameEntry
from lamp_trt.engine.bundle.paths import validate_motion_name
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.families import (
    COMPONENTS,
    LAMP,
    NETWORKS,
    SAFETY_CHECKER,
    SD_CHECKPOINT,
    SDXL_CHECKPOINT,
    component_of,
    origins,
)
from lamp_trt.engine.files.tokenizer import read_tokenizer_files, tokenizer_files
from lamp_trt.engine.networks import IOTensor, NetworkSpec, Origin
from lamp_trt.engine.precompute import HOISTS, hoisted_from, hoisted_specs
from lamp_trt.export.checkpoints.files import (
    DEFAULT_SCALING_FACTOR,
    ComponentFiles,
    find_component,
    read_json,
)
from lamp_trt.export.checkpoints.safety import Preprocessing, names_checker, preprocessing
from lamp_trt.export.checkpoints.scheduler import check_same_noise, check_scheduler, scheduler_settings
from lamp_trt.export.checkpoints.sdxl import open_sd, open_sdxl
from lamp_trt.export.checkpoints.unet_layout import condition_layout
from lamp_trt.export.sizes import Configs, first_frame_sizes, video_sizes

log = logging.getLogger("lamp_trt")

CONVERTER_VERSION = 1
"""Increment when the same checkpoints would give different weight files, so that bundles are rebuilt."""
EXPORTER_VERSION = 1
"""Increment when the same inputs would give different graphs."""
PREVIEW_VERSION = 1
"""Increment when the same VAE would give another preview map."""

_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers")

CLIP_VOCABULARY = 49408
"""Vocabulary size of a text encoder whose config does not give it: transformers' default."""

MAX_SIDE, MAX_FRAMES = 8192, 1024
"""Limits in pixels and frames. Attention alone would take terabytes of memory above them."""


@dataclass(frozen=True)
class BuildOptions:
    """The options of `lamp-trt build`. Raises InputError for values out of range.

    first_frame_height, first_frame_width: SDXL's image size in pixels, None for twice the video's. hoist:
    names from HOISTS that are left out of the UNets' graphs and computed by separate networks.
    """

    sd: Path | None = None
    motions: Mapping[str, Path] | None = None
    sdxl: Path | None = None
    precision: Precision = "fp32"
    height: int = 320
    width: int = 512
    num_frames: int = 16
    first_frame_height: int | None = None
    first_frame_width: int | None = None
    only: tuple[str, ...] = ()
    hoist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}.")
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise InputError(
                f"frames is {self.num_frames}; a video has at least 1 and at most {MAX_FRAMES} "
                "(LAMP was trained on 16)."
            )
        for name in ("height", "width", "first_frame_height", "first_frame_width"):
            pixels = getattr(self, name)
            if pixels is not None and not 1 <= pixels <= MAX_SIDE:
                raise InputError(
                    f"{name} is {pixels}; it must be a positive number of pixels, at most {MAX_SIDE}."
                )
            if name.startswith("first_frame") and pixels is not None and self.sdxl is None:
                add = SDXL_CHECKPOINT.usage
                raise InputError(f"{name} is {pixels}, but no SDXL network is built: add {add}.")
        unknown = [name for name in self.only if name not in NETWORKS]
        if unknown:
            raise InputError(f"unknown network {unknown[0]!r}; --only takes {', '.join(NETWORKS)}.")
        unknown = [name for name in self.hoist if name not in HOISTS]
        if unknown:
            raise InputError(f"unknown hoist {unknown[0]!r}; choose from {', '.join(HOISTS)}.")
        for name in self.motions or {}:
            validate_motion_name(name)


@dataclass(frozen=True)
class Source:
    """One component of a checkpoint; `digest` covers its config and every byte of its weights."""

    files: ComponentFiles
    digest: str


@dataclass(frozen=True)
class Recipe:
    """The parts of a bundle that this build makes or confirms.

    specs          its networks by name
    preprocessing  of the safety checker's input, None if this build makes no checker
    """

    precision: Precision
    specs: Mapping[str, NetworkSpec]
    hoist: tuple[str, ...]
    components: Mapping[str, Source]
    motions: Mapping[str, Source]
    tokenizers: Mapping[str, Path]
    scheduler: Mapping[str, Any]
    scaling_factors: Mapping[str, float]
    sizes: Mapping[str, int]
    first_frame: FirstFrameEntry | None
    preprocessing: Preprocessing | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.specs)

    def hoisted_from(self, network: str) -> tuple[str, ...]:
        """The hoists applied to this network's graph."""
        return hoisted_from(network, self.hoist)

    def precision_of(self, component: str) -> Precision:
        return COMPONENTS[component].precision_in(self.precision)

    def io(self, network: str) -> tuple[tuple[IOTensor, ...], tuple[IOTensor, ...]]:
        spec = self.specs[network]
        return spec.resolve(self.sizes, self.precision_of(spec.component))

    def weights_key(self, component: str) -> str:
        source = self.components[component]
        return digest_of(CONVERTER_VERSION, component, self.precision_of(component), source.digest)

    def preview_key(self, vae: str) -> str:
        """The key of the preview map of a VAE's component."""
        return digest_of(PREVIEW_VERSION, self.components[vae].digest, self.scaling_factors[vae])

    def graph_key(self, network: str) -> str:
        """The key of a graph that references its own component's weight file only.

        A graph that also references a motion has a `motion_graph_key`, one that references another
        component's file a `shared_graph_key`.
        """
        inputs, outputs = self.io(network)
        component = self.specs[network].component
        return digest_of(
            [EXPORTER_VERSION, __version__, *_exporter_versions()],
            network,
            self.hoisted_from(network),
            [[t.name, t.shape, t.dtype] for t in (*inputs, *outputs)],
            dict(self.components[component].files.config),
            self.weights_key(component),
        )


def digest_of(*inputs: object) -> str:
    """A key: sha256 over the canonical JSON of what a file is made from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=list).encode()).hexdigest()


def motion_key(motion: Source, precision: Precision, base_key: str) -> str:
    """The key of a motion's file. base_key: key of the shared weights that the motion is compared with."""
    return digest_of(CONVERTER_VERSION, "motion", precision, motion.digest, base_key)


def motion_graph_key(base_key: str, motion_key: str) -> str:
    return digest_of(base_key, motion_key)


def shared_graph_key(base_key: str, weights_sha256: str) -> str:
    return digest_of(base_key, "lent", weights_sha256)


def recipe_from_options(options: BuildOptions, cache: DigestCache | None = None) -> Recipe:
    """Find and check the checkpoints that the requested networks need; only these must be given.

    Raises CheckpointError or InputError naming the folder, the field and the accepted values.
    """
    cache = cache or DigestCache()
    networks = _networks(options)
    components = tuple(dict.fromkeys(NETWORKS[name].component for name in networks))
    sources: dict[str, Source] = {}
    motions: dict[str, Source] = {}
    tokenizers: dict[str, Path] = {}
    scheduler: Mapping[str, Any] = {}
    first_frame: FirstFrameEntry | None = None
    pictures: Preprocessing | None = None
    from_sd = _of_origin(SD_CHECKPOINT, components)
    if from_sd:
        assert options.sd is not None
        sd = open_sd(options.sd, from_sd)
        sources |= {name: source_of(files, cache) for name, files in sd.components.items()}
        tokenizers.update(sd.tokenizers)
        scheduler = scheduler_settings(sd.scheduler_config)
        if not options.only and SAFETY_CHECKER not in networks and names_checker(sd.folder):
            log.warning(
                "%s names a safety checker and does not hold it: this build filters nothing", sd.folder
            )
        if SAFETY_CHECKER in sd.components:
            image_size = sd.components[SAFETY_CHECKER].config["image_size"]
            pictures = preprocessing(sd.folder, image_size)
    if LAMP.unet_component in components:
        assert options.motions
        motions = {name: motion_source(folder, cache, scheduler) for name, folder in options.motions.items()}
        sources[LAMP.unet_component] = next(iter(motions.values()))
    from_sdxl = _of_origin(SDXL_CHECKPOINT, components)
    if from_sdxl:
        assert options.sdxl is not None
        sdxl = open_sdxl(options.sdxl, from_sdxl)
        sources |= {name: source_of(files, cache) for name, files in sdxl.components.items()}
        tokenizers.update(sdxl.tokenizers)
        first_frame = FirstFrameEntry(dict(sdxl.scheduler_config), sdxl.force_zeros_for_empty_prompt)
    configs = {name: source.files.config for name, source in sources.items()}
    vaes = [name for name in sources if COMPONENTS[name].scaling_factor]
    scaling = {name: float(configs[name].get("scaling_factor") or DEFAULT_SCALING_FACTOR) for name in vaes}
    for name, source in sources.items():
        tokenizer = COMPONENTS[name].tokenizer
        if tokenizer:
            _check_tokenizer(tokenizers[tokenizer.name], source.files)
    sizes = _sizes(options, configs)
    return Recipe(
        options.precision,
        specs_of(networks, options.hoist, configs),
        options.hoist,
        sources,
        motions,
        tokenizers,
        scheduler,
        scaling,
        sizes,
        first_frame,
        pictures,
    )


def _of_origin(origin: Origin, components: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in components if COMPONENTS[name].origin == origin)


def _sizes(options: BuildOptions, configs: Configs) -> dict[str, int]:
    """The size of every axis. Logs a warning if the first frame has another aspect ratio than the video."""
    sizes = video_sizes(configs, options.height, options.width, options.num_frames)
    if _of_origin(SDXL_CHECKPOINT, tuple(configs)):
        sizes |= first_frame_sizes(configs, sizes, options.first_frame_height, options.first_frame_width)
        if sizes["first_frame_height"] * sizes["width"] != sizes["first_frame_width"] * sizes["height"]:
            log.warning(
                "the first frame, %dx%d, has another aspect ratio than the video, %dx%d: it will be "
                "stretched, or cropped or padded with --fit",
                *(sizes[f"{of}{side}"] for of in ("first_frame_", "") for side in ("width", "height")),
            )
    return sizes


def specs_of(networks: tuple[str, ...], hoist: tuple[str, ...], configs: Configs) -> dict[str, NetworkSpec]:
    """Specs of `networks` by name, each hoisted UNet followed by the networks that compute its inputs."""
    specs: dict[str, NetworkSpec] = {}
    for name in networks:
        spec, taken = NETWORKS[name], hoisted_from(name, hoist)
        if taken:
            layout = condition_layout(spec.component, configs[spec.component])
            specs |= hoisted_specs(name, layout, taken)
        else:
            specs[name] = spec
    return specs


def motion_source(folder: Path, cache: DigestCache, sd_scheduler: Mapping[str, Any]) -> Source:
    """The UNet of the LAMP checkpoint in `folder`.

    A scheduler in the folder must be supported and have the noise schedule of sd_scheduler ({}: not checked).
    Raises CheckpointError.
    """
    name = COMPONENTS[LAMP.unet_component].folder
    files = find_component(folder, name)
    root = files.folder.parent
    path = root / "scheduler" / "scheduler_config.json"
    if files.folder.name == name and path.is_file():
        config = read_json(path)
        check_scheduler(root, config)
        if sd_scheduler:
            check_same_noise(root, config, sd_scheduler)
    return source_of(files, cache)


def source_of(files: ComponentFiles, cache: DigestCache) -> Source:
    digests = [cache.digest(path) for path in files.weight_files]
    return Source(files, digest_of(dict(files.config), digests))


def _check_tokenizer(folder: Path, encoder: ComponentFiles) -> None:
    """Raise CheckpointError unless `folder` holds CLIP's tokenizer and the text encoder takes all its ids."""
    tokenizer_files(folder)
    tokens, taken = read_tokenizer_files(folder).size, encoder.config.get("vocab_size", CLIP_VOCABULARY)
    if tokens > taken:
        raise CheckpointError(
            f"the tokenizer in {folder} has ids up to {tokens - 1}, but the text encoder in {encoder.folder} "
            f"takes {taken} (vocab_size): they do not belong together. Give both from the same checkpoint."
        )


def _networks(options: BuildOptions) -> tuple[str, ...]:
    """The networks to build: `--only`, or all that the given checkpoints allow."""
    given = [origin for origin in origins() if getattr(options, origin.field)]
    possible = [name for name in NETWORKS if component_of(name).origin in given]
    for name in options.only:
        if name not in possible:
            add = component_of(name).origin.usage
            raise InputError(f"{name} needs a checkpoint that was not given: add {add}.")
    if not possible:
        usage = " or ".join(origin.usage for origin in origins())
        raise InputError(f"nothing to build: give {usage}, or several of them.")
    return tuple(name for name in possible if name in (options.only or possible) and _is_there(options, name))


def _is_there(options: BuildOptions, network: str) -> bool:
    """Whether to build `network`: False if it is optional, not named by --only, and its folder is missing."""
    component = component_of(network)
    if not component.optional or network in options.only:
        return True
    folder = Path(getattr(options, component.origin.field), component.folder).expanduser()
    return os.path.lexists(folder)  # what is no folder, or leads nowhere, is refused when it is opened


def _exporter_versions() -> list[str]:
    """Name and version of each installed exporter package. The LAMP UNet needs only torch and ONNX."""
    versions = []
    for name in _EXPORTERS:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return versions
