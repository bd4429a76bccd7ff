# SPDX-License-Identifier: Apache-2.0
"""bundle.json, the manifest of a bundle: strict reading, byte-identical writing."""

import dataclasses
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamp_trt.engine.bundle.paths import MANIFEST, check_relative, validate_motion_name
from lamp_trt.engine.dtypes import PRECISIONS, Precision, border_dtype
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import SAFETY_CHECKER
from lamp_trt.engine.files.links import unreadable
from lamp_trt.engine.files.strict_json import decode, parse_object
from lamp_trt.engine.networks import IOTensor

SCHEMA_VERSION = 1
MAX_BYTES = 16 << 20
_DTYPES = (*sorted(set(map(border_dtype, PRECISIONS))), "int32", "int64")
_MAX_AXIS = 2**31 - 1

BETA_SCHEDULES = ("linear", "scaled_linear")
"""Values of `beta_schedule` in scheduler_config.json that runtime/algorithm/ddim.py supports."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class FileEntry:
    """A deterministic file: `sha256` is `file_digest`; `key` identifies the inputs that it was made from."""

    size: int
    sha256: str
    key: str


@dataclass(frozen=True)
class NetworkEntry:
    """An exported network: its graph file, weight component, precision, and I/O with every axis resolved."""

    graph: str
    component: str
    precision: Precision
    inputs: tuple[IOTensor, ...]
    outputs: tuple[IOTensor, ...]


@dataclass(frozen=True)
class MotionEntry:
    """A motion's file. kind: "full" if its shared tensors also differ from the base. origin: digest of its
    checkpoint."""

    file: str
    kind: Literal["motion", "full"]
    origin: str


@dataclass(frozen=True)
class FirstFrameEntry:
    """Settings from the SDXL checkpoint: scheduler_config.json, and whether a missing prompt has all-zero
    embeddings instead of the empty text's."""

    scheduler: dict[str, Scalar | tuple[Scalar, ...]]
    force_zeros_for_empty_prompt: bool


@dataclass(frozen=True)
class SafetyEntry:
    """Constants of the safety checker's decision from the network's cosines.

    image_mean, image_std: of its pictures' channels, in [0, 1]. concept_thresholds, special_care_thresholds:
    the cosine above which a concept is found, see runtime/safety/decision.py.
    """

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    concept_thresholds: tuple[float, ...]
    special_care_thresholds: tuple[float, ...]


@dataclass(frozen=True)
class PreviewEntry:
    """The linear map from a VAE's scaled latents to colours in [-1, 1]: weights @ latents + bias, see
    export/preview_map.py.

    weights (3, 4), bias (3,), rounded. r_squared: share of the colours' variance that it explains on the
    pictures of its fit. key: identifies the VAE.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    r_squared: float
    key: str


@dataclass(frozen=True)
class Manifest:
    """The contents of bundle.json. BundleError, naming the field, if fields contradict each other.

    sizes: axis sizes (height, width, num_frames, latent_height, latent_width, batch, decode_batch, tokens,
    text_width, …). scheduler: as published. scaling_factors: by VAE, like {"vae": 0.18215}.
    tokenizers: {name: {"folder": …, …}}. files: every deterministic file by its relative path. first_frame:
    None, and then absent from the file, for a bundle without SDXL networks; safety likewise without a
    safety checker. previews: by VAE; empty, and then absent, in bundles of older releases.
    """

    networks: dict[str, NetworkEntry]
    sizes: dict[str, int]
    scheduler: dict[str, Scalar | tuple[Scalar, ...]]
    scaling_factors: dict[str, float]
    tokenizers: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    motions: dict[str, MotionEntry] = field(default_factory=dict)
    default_motion: str | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    first_frame: FirstFrameEntry | None = None
    safety: SafetyEntry | None = None
    previews: dict[str, PreviewEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, entry in self.files.items():
            check_relative(path)
            _require(0 <= entry.size < 2**63, f"files.{path}.size", entry.size, "a size in bytes")
            _require(_is_sha256(entry.sha256), f"files.{path}.sha256", entry.sha256, "64 hexadecimal digits")
        for name, network in self.networks.items():
            where = f"networks.{name}"
            self._require_file(f"{where}.graph", network.graph)
            for tensor in (*network.inputs, *network.outputs):
                _require(
                    tensor.dtype in _DTYPES, f"{where}.{tensor.name}.dtype", tensor.dtype, f"one of {_DTYPES}"
                )
                for axis in tensor.shape:
                    _require(
                        0 < axis <= _MAX_AXIS, f"{where}.{tensor.name}.shape", axis, "axes of 1 to 2^31-1"
                    )
        for name, size in self.sizes.items():
            _require(0 < size <= _MAX_AXIS, f"sizes.{name}", size, "1 to 2^31-1")
        for name, tokenizer in self.tokenizers.items():
            folder = tokenizer.get("folder")
            _require(
                isinstance(folder, str) and any(path.startswith(f"{folder}/") for path in self.files),
                f"tokenizers.{name}.folder",
                folder,
                "a folder with files in the bundle",
            )
        for name, motion in self.motions.items():
            try:
                validate_motion_name(name)
            except InputError as error:
                raise BundleError(f"motions: {error}") from error
            self._require_file(f"motions.{name}.file", motion.file)
        if self.motions or self.default_motion is not None:
            _require(
                self.default_motion in self.motions,
                "default_motion",
                self.default_motion,
                f"one of {[*self.motions]}",
            )
        self._check_safety()
        for name, preview in self.previews.items():
            _require(name in self.scaling_factors, f"previews.{name}", name, "the name of a VAE")
            shape = [len(row) for row in (*preview.weights, preview.bias)]
            _require(
                shape == [4, 4, 4, 3], f"previews.{name}", shape, "three rows of 4 weights, and 3 biases"
            )
            largest = max(abs(number) for row in (*preview.weights, preview.bias) for number in row)
            _require(largest <= 100, f"previews.{name}", largest, "numbers of at most 100")

    def _check_safety(self) -> None:
        """The safety checker's network and entry are there together, and fit each other: a bundle does not
        lose its filter by losing one of them."""
        network, entry = self.networks.get(SAFETY_CHECKER), self.safety
        _require(
            (network is None) == (entry is None),
            "safety",
            None if entry is None else "there",
            f"one exactly if there is the network {SAFETY_CHECKER}",
        )
        if network is None or entry is None:
            return
        shapes = [tensor.shape for tensor in (*network.inputs, *network.outputs)]
        wanted = [len(entry.concept_thresholds), len(entry.special_care_thresholds)]
        _require(
            len(shapes) == 3 and len(shapes[0]) == 4 and [shape[-1] for shape in shapes[1:]] == wanted,
            f"networks.{SAFETY_CHECKER}",
            shapes,
            f"pictures in, and {' and '.join(map(str, wanted))} cosines out, as many as thresholds",
        )
        _require(
            len(entry.image_mean) == len(entry.image_std) == 3 and min(entry.image_std) > 0,
            "safety.image_std",
            entry.image_std,
            "a mean and a positive deviation for each of three channels",
        )

    def _require_file(self, where: str, path: str) -> None:
        _require(path in self.files, where, path, "a path that `files` names")

    def to_json(self) -> bytes:
        """The bytes of bundle.json: sorted keys, neither time nor host, and a digest of the other fields."""
        document = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        for optional in ("first_frame", "safety", "previews"):
            if not document[optional]:
                del document[optional]
        return _canonical({**document, "content_sha256": hashlib.sha256(_canonical(document)).hexdigest()})

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """The manifest in `data`. BundleError, naming the field, unless `to_json` writes the same bytes."""
        document = parse_object(data)
        version = document.pop("schema_version", None)
        if not isinstance(version, int) or isinstance(version, bool):
            raise BundleError(f"schema_version is {version!r:.100}, expected {SCHEMA_VERSION}")
        if version != SCHEMA_VERSION:
            origin = "a newer lamp-trt: upgrade this one" if version > SCHEMA_VERSION else "an older lamp-trt"
            raise BundleError(
                f"schema_version is {version!r:.100}, this lamp-trt reads {SCHEMA_VERSION}; made by {origin}"
            )
        content = document.pop("content_sha256", None)
        manifest: Manifest = decode(
            cls, {"first_frame": None, "safety": None, "previews": {}, **document}, ""
        )
        if manifest.to_json() != data:
            raise BundleError(
                f"content_sha256 is {content!r:.100} and does not fit: the file was edited or damaged"
            )
        return manifest


def manifest_digest(data: bytes) -> str:
    """The digest that pins a bundle: sha256 of bundle.json's bytes, as `sha256sum bundle.json` prints it."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path, name: str = MANIFEST) -> tuple[Manifest, bytes]:
    """The manifest in `folder` and its bytes. FileNotFoundError if it is missing, BundleError if it is
    invalid."""
    path = folder / name
    if os.path.isfile(folder):
        raise BundleError(
            f"{folder} is a file, and a bundle is a folder: give {folder.parent} if it is in one"
        )
    try:
        data = read_small_file(path)
    except BundleError as error:
        raise BundleError(
            f"{error}. Make it readable, or get the bundle again from where it came from"
        ) from error
    try:
        return Manifest.from_json(data), data
    except BundleError as error:
        remedy = f"To make the bundle again, delete {path} and run: {rebuild_command(folder)}"
        raise BundleError(f"{path}: {error}. {remedy}") from error


def read_small_file(path: Path) -> bytes:
    """The bytes of a regular file of at most 16 MiB, links followed.

    FileNotFoundError if there is neither a file nor a link, else BundleError.
    """
    problem = unreadable(path)
    if problem and os.path.lexists(path):
        raise BundleError(f"{path} {problem}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise BundleError(f"{path} is not a regular file of at most {MAX_BYTES} bytes")
            return file.read(MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def rebuild_command(folder: Path) -> str:
    return f"lamp-trt build … --out {folder}"


def _canonical(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _require(condition: bool, where: str, value: object, expectation: str) -> None:
    if not condition:
        raise BundleError(f"{where} is {value!r:.100}, expected {expectation}")
