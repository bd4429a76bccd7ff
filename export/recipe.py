# SPDX-License-Identifier: Apache-2.0
"""What a bundle will consist of and the key of each file, found without loading torch or a single weight.

A key is a digest of everything that a file is made from. A build makes only the files whose keys the bundle
does not hold yet, so that repeating one costs as much as this module: the digests of unchanged checkpoints
are remembered.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lamp_trt
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import FirstFrameEntry
from lamp_trt.engine.bundle.paths import validate_motion_name
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.tokenizer import read_tokenizer_files, tokenizer_files
from lamp_trt.engine.networks import COMPONENT_PRECISION, NETWORKS, IOTensor, NetworkSpec
from lamp_trt.engine.precompute import HOISTED, HOISTS, hoisted_specs
from lamp_trt.export.checkpoints.family import check_vae
from lamp_trt.export.checkpoints.files import (
    DEFAULT_SCALING_FACTOR,
    ComponentFiles,
    find_component,
    open_checkpoint,
    read_json,
)
from lamp_trt.export.checkpoints.scheduler import check_same_noise, check_scheduler, scheduler_settings
from lamp_trt.export.checkpoints.sdxl import FOLDERS as SDXL_FOLDERS
from lamp_trt.export.checkpoints.sdxl import open_sdxl, refuse_other_family
from lamp_trt.export.checkpoints.unet_layout import condition_layout
from lamp_trt.export.sizes import Configs, first_frame_sizes, video_sizes

log = logging.getLogger("lamp_trt")

CONVERTER_VERSION = 1
"""Raise it when equal checkpoints would give other weight files, so that bundles are made again."""
EXPORTER_VERSION = 1
"""Raise it when equal inputs would give other graphs."""

_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers")

CLIP_VOCABULARY = 49408
"""Of a text encoder whose config does not say: transformers' default."""

ENCODERS = {
    "tokenizer": "text_encoder",
    "sdxl_tokenizer": "sdxl_text_encoder",
    "tokenizer_2": "sdxl_text_encoder_2",
}
"""The text encoder that takes each tokenizer's ids, by the bundle's names."""

ORIGINS = {
    "text_encoder": "--sd",
    "vae": "--sd",
    "unet": "--motion",
    **dict.fromkeys(SDXL_FOLDERS, "--sdxl"),
}
"""Which checkpoint each component is read from; the UNet's shared weights come from the first motion's."""

_USAGE = {
    "--sd": "--sd DIR (Stable Diffusion v1.4)",
    "--motion": "--motion NAME=DIR (LAMP)",
    "--sdxl": "--sdxl DIR (Stable Diffusion XL)",
}


MAX_SIDE, MAX_FRAMES = 8192, 1024
"""More fits into no machine's memory: attention alone would take terabytes."""


@dataclass(frozen=True)
class BuildOptions:
    """What `lamp-trt build` was asked for. Raises InputError for sizes that no network takes.

    first_frame_height, first_frame_width: of SDXL's image, None for twice the video's. hoist: of HOISTS, what
    the UNets' graphs leave out; networks of their own then compute it.
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
                raise InputError(f"{name} is {pixels}, but no SDXL network is built: add {_USAGE['--sdxl']}.")
        unknown = [name for name in self.only if name not in NETWORKS]
        if unknown:
            raise InputError(f"there is no network {unknown[0]!r}; --only takes {', '.join(NETWORKS)}.")
        unknown = [name for name in self.hoist if name not in HOISTS]
        if unknown:
            raise InputError(f"there is no hoist {unknown[0]!r}; choose of {', '.join(HOISTS)}.")
        for name in self.motions or {}:
            validate_motion_name(name)


@dataclass(frozen=True)
class Source:
    """One component of a checkpoint; `digest` covers its config and every byte of its weights."""

    files: ComponentFiles
    digest: str


@dataclass(frozen=True)
class Recipe:
    """The parts of a bundle that this build makes or confirms. specs: of its networks, by name."""

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

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.specs)

    def hoisted_from(self, network: str) -> tuple[str, ...]:
        """What this network's graph leaves out."""
        return hoisted_from(network, self.hoist)

    def precision_of(self, component: str) -> Precision:
        return COMPONENT_PRECISION.get(component, self.precision)

    def io(self, network: str) -> tuple[tuple[IOTensor, ...], tuple[IOTensor, ...]]:
        spec = self.specs[network]
        return spec.resolve(self.sizes, self.precision_of(spec.component))

    def weights_key(self, component: str) -> str:
        source = self.components[component]
        return digest_of(CONVERTER_VERSION, component, self.precision_of(component), source.digest)

    def graph_key(self, network: str) -> str:
        """Of a graph that points at its own component's weights alone. The LAMP UNet's becomes a
        `motion_graph_key`, the SDXL text encoder's a `lent_graph_key` where it does not."""
        inputs, outputs = self.io(network)
        component = self.specs[network].component
        return digest_of(
            [EXPORTER_VERSION, lamp_trt.__version__, *_exporter_versions()],
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
    """`base_key`: of the shared weights that the motion is compared with."""
    return digest_of(CONVERTER_VERSION, "motion", precision, motion.digest, base_key)


def motion_graph_key(base_key: str, motion_key: str) -> str:
    return digest_of(base_key, motion_key)


def lent_graph_key(base_key: str, lent_sha256: str) -> str:
    return digest_of(base_key, "lent", lent_sha256)


def recipe_from_options(options: BuildOptions, cache: DigestCache | None = None) -> Recipe:
    """Find and check the checkpoints that the wanted networks need; only those must be given.

    Raises CheckpointError or InputError naming the folder, the field, and what would fit.
    """
    cache = cache or DigestCache()
    networks = _networks(options)
    components = tuple(dict.fromkeys(NETWORKS[name].component for name in networks))
    sources: dict[str, Source] = {}
    motions: dict[str, Source] = {}
    tokenizers: dict[str, Path] = {}
    scheduler: Mapping[str, Any] = {}
    first_frame: FirstFrameEntry | None = None
    from_sd = tuple(component for component in components if ORIGINS[component] == "--sd")
    if from_sd:
        assert options.sd is not None
        index = refuse_other_family(options.sd)
        checkpoint = open_checkpoint(options.sd, from_sd, ("tokenizer",) * ("text_encoder" in from_sd))
        check_scheduler(options.sd, checkpoint.scheduler_config, index)
        if "vae" in from_sd:
            check_vae(checkpoint.components["vae"], "Stable Diffusion v1", DEFAULT_SCALING_FACTOR)
        sources = {name: source_of(checkpoint.components[name], cache) for name in from_sd}
        tokenizers.update(checkpoint.tokenizers)
        scheduler = scheduler_settings(checkpoint.scheduler_config)
    if "unet" in components:
        assert options.motions
        motions = {name: motion_source(folder, cache, scheduler) for name, folder in options.motions.items()}
        sources["unet"] = next(iter(motions.values()))
    from_sdxl = tuple(component for component in components if ORIGINS[component] == "--sdxl")
    if from_sdxl:
        assert options.sdxl is not None
        sdxl = open_sdxl(options.sdxl, from_sdxl)
        sources |= {name: source_of(files, cache) for name, files in sdxl.components.items()}
        tokenizers.update(sdxl.tokenizers)
        first_frame = FirstFrameEntry(dict(sdxl.scheduler_config), sdxl.force_zeros_for_empty_prompt)
    scaling: dict[str, float] = {
        name: float(sources[name].files.config.get("scaling_factor") or DEFAULT_SCALING_FACTOR)
        for name in ("vae", "sdxl_vae")
        if name in sources
    }
    for name, folder in tokenizers.items():
        _check_tokenizer(folder, sources[ENCODERS[name]].files)
    configs = {name: source.files.config for name, source in sources.items()}
    sizes = video_sizes(configs, options.height, options.width, options.num_frames)
    if from_sdxl:
        sizes |= first_frame_sizes(configs, sizes, options.first_frame_height, options.first_frame_width)
        if sizes["first_frame_height"] * sizes["width"] != sizes["first_frame_width"] * sizes["height"]:
            log.warning(
                "the first frame, %dx%d, has another aspect ratio than the video, %dx%d: it will be "
                "stretched, or cropped or padded with --fit",
                *(sizes[f"{of}{side}"] for of in ("first_frame_", "") for side in ("width", "height")),
            )
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
    )


def specs_of(networks: tuple[str, ...], hoist: tuple[str, ...], configs: Configs) -> dict[str, NetworkSpec]:
    """Of these networks, and after each UNet of those that stand beside it."""
    specs: dict[str, NetworkSpec] = {}
    for name in networks:
        spec, taken = NETWORKS[name], hoisted_from(name, hoist)
        if taken:
            layout = condition_layout(spec.component, configs[spec.component])
            specs |= hoisted_specs(name, layout, taken)
        else:
            specs[name] = spec
    return specs


def hoisted_from(network: str, hoist: tuple[str, ...]) -> tuple[str, ...]:
    """What of `hoist` concerns a network, in the order of HOISTS: SDXL's halves share no prefix."""
    concerned = network in HOISTED
    return tuple(
        name
        for name in HOISTS
        if name in hoist and concerned and (name != "prefix" or network == "lamp_unet")
    )


def motion_source(folder: Path, cache: DigestCache, sd_scheduler: Mapping[str, Any]) -> Source:
    """The UNet of the LAMP checkpoint in `folder`, whose scheduler, if it has one, must be of ours and fit
    that of --sd ({} without it)."""
    files = find_component(folder, "unet")
    root = files.folder.parent
    path = root / "scheduler" / "scheduler_config.json"
    if files.folder.name == "unet" and path.is_file():
        config = read_json(path)
        check_scheduler(root, config)
        if sd_scheduler:
            check_same_noise(root, config, sd_scheduler)
    return source_of(files, cache)


def source_of(files: ComponentFiles, cache: DigestCache) -> Source:
    digests = [cache.digest(path) for path in files.weight_files]
    return Source(files, digest_of(dict(files.config), digests))


def _check_tokenizer(folder: Path, encoder: ComponentFiles) -> None:
    """Raise CheckpointError unless `folder` holds CLIP's tokenizer, with ids that the text encoder takes."""
    tokenizer_files(folder)
    tokens, taken = read_tokenizer_files(folder).size, encoder.config.get("vocab_size", CLIP_VOCABULARY)
    if tokens > taken:
        raise CheckpointError(
            f"the tokenizer in {folder} has ids up to {tokens - 1}, the text encoder in {encoder.folder} "
            f"takes {taken} (vocab_size): they do not belong together."
        )


def _networks(options: BuildOptions) -> tuple[str, ...]:
    """What is to be built: `--only`, or all that the given checkpoints allow."""
    given = {
        "--sd": options.sd is not None,
        "--motion": bool(options.motions),
        "--sdxl": options.sdxl is not None,
    }
    possible = [name for name, spec in NETWORKS.items() if given[ORIGINS[spec.component]]]
    for name in options.only:
        if name not in possible:
            origin = ORIGINS[NETWORKS[name].component]
            raise InputError(f"{name} needs a checkpoint that was not given: add {_USAGE[origin]}.")
    if not possible:
        raise InputError(f"nothing to build: give {' or '.join(_USAGE.values())}, or several of them.")
    return tuple(name for name in possible if not options.only or name in options.only)


def _exporter_versions() -> list[str]:
    """What is not installed exports nothing: the LAMP UNet needs torch and ONNX alone."""
    versions = []
    for name in _EXPORTERS:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return versions
