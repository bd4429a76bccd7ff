# SPDX-License-Identifier: Apache-2.0
"""Files of inverted latents: what they belong to, their cache, and the checks before one is used."""

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.engine.bundle.weights import weight_file_header
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.output import written
from lamp_trt.engine.files.text import TextError, parse_json
from lamp_trt.engine.files.user_cache import cache_folder, keep
from lamp_trt.runtime.algorithm.latents import Latents

log = logging.getLogger("lamp_trt")

SUFFIX = ".safetensors"

_FORMAT = "lamp-trt inverted latents 1"
_TENSOR, _DTYPE = "latents", "F32"
_KEPT_FILES = 200
"""Maximum number of files in the cache; the oldest are removed. A file of 24 frames of 512x320 takes 1 MB."""


@dataclass(frozen=True)
class Origin:
    """Everything that inverted latents depend on.

    clip    digest of the frames, see clip_digest
    bundle  digest of the bundle
    steps   num_inference_steps
    shape   of the latents, (1, 4, f, h, w)
    runner  backend, device and arithmetic
    """

    clip: str
    bundle: str
    motion: str
    steps: int
    shape: tuple[int, ...]
    runner: str

    @property
    def key(self) -> str:
        """Digest of all of it, the name of the cache file."""
        return hashlib.sha256(json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


def cached(origin: Origin) -> Latents | None:
    """The latents in the cache, None if there are none. A damaged file is said and ignored."""
    path = _cache_path(origin)
    if path is None or not path.is_file():
        return None
    try:
        latents = read_latents(path, origin)
    except InputError as error:
        log.warning("%s The clip is inverted again.", error)
        return None
    with suppress(OSError):
        os.utime(path)
    return latents


def cache(latents: Latents, origin: Origin) -> None:
    """Put latents into the cache, if there is one; removes the oldest files beyond _KEPT_FILES."""
    path = _cache_path(origin)
    if path is None or not keep(path, _encoded(latents, origin), "each edit inverts its clip again"):
        return
    with suppress(OSError):  # another process may be removing them
        files = sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime_ns)
        for old in files[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)


def write_latents(path: Path, latents: Latents, origin: Origin) -> None:
    """Write latents with their origin, atomically. Raises as `written`."""
    with written(path) as (partial,):
        partial.write_bytes(_encoded(latents, origin))


def check_latents_path(path: Path) -> None:
    """Raise InputError if `path` is neither a file of latents nor a place where one can be written."""
    name = _name(path)
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"{name} does not end in {SUFFIX}.")
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{name} is not a file.")
    if not path.is_file() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{name} does not exist and cannot be written: no such folder, or no permission.")


def read_latents(path: Path, origin: Origin) -> Latents:
    """Latents (1, 4, f, h, w) from a file that belongs to `origin`; another runner is allowed.

    Raises InputError, naming what differs, for latents of another bundle, motion, clip, size or number of
    steps, for values that are not finite, and for other files.
    """
    from safetensors import SafetensorError, safe_open

    name = _name(path)
    try:
        with safe_open(path, framework="np") as file:
            _require_same(name, _stored_origin(file.metadata(), name), origin)
            if list(file.keys()) != [_TENSOR]:
                raise InputError(f"{name} does not hold the one tensor {_TENSOR!r}.")
            stored = file.get_slice(_TENSOR)
            shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
            if shape != origin.shape:
                raise InputError(f"{name} holds latents of {shape}; this bundle needs {origin.shape}.")
            if dtype != _DTYPE:
                raise InputError(f"{name} holds {dtype}; expected float32 ({_DTYPE}).")
            latents = file.get_tensor(_TENSOR)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as safetensors: {error!s:.200}. Remove it.") from error
    if not np.isfinite(latents).all():
        raise InputError(f"{name} holds NaN or infinity. Remove it, and the clip is inverted again.")
    result: Latents = latents
    return result


def _name(path: Path) -> str:
    return f"the inverted latents {str(path)!r:.300}"


def _cache_path(origin: Origin) -> Path | None:
    folder = cache_folder("inversions")
    return None if folder is None else folder / f"{origin.key}{SUFFIX}"


def _encoded(latents: Latents, origin: Origin) -> bytes:
    """The bytes of a file. safetensors' own writer puts metadata into an order that changes."""
    metadata = {"format": _FORMAT, "origin": json.dumps(asdict(origin), sort_keys=True)}
    header = weight_file_header({_TENSOR: (_DTYPE, latents.shape)}, metadata)
    return header + np.ascontiguousarray(latents, np.float32).tobytes()


def _stored_origin(metadata: dict[str, str] | None, name: str) -> dict[str, Any]:
    if not metadata or metadata.get("format") != _FORMAT:
        raise InputError(
            f"{name} does not say what it belongs to, so it was not written by lamp-trt edit. From Python: "
            "pipe(…, noise=latents, mix_noise=False)."
        )
    try:
        stored = parse_json(metadata.get("origin", ""))
    except TextError as error:
        raise InputError(f"{name} cannot be read: its origin {error}") from error
    return stored if isinstance(stored, dict) else {}


def _require_same(name: str, stored: dict[str, Any], origin: Origin) -> None:
    for part, value in asdict(origin).items():
        expected = list(value) if isinstance(value, tuple) else value
        if part != "runner" and stored.get(part) != expected:
            raise InputError(
                f"{name} belongs to another {_PARTS[part]}: {stored.get(part)!r:.100}, not "
                f"{expected!r:.100}. Give another file, or a new name to keep this edit's latents."
            )


_PARTS = {
    "clip": "clip, or other frames of it",
    "bundle": "bundle",
    "motion": "motion",
    "steps": "number of steps",
    "shape": "size",
}
