# SPDX-License-Identifier: Apache-2.0
"""Engines compiled for one device: a file and a sidecar, <network>-<key>.<suffix> and <network>-<key>.json.

Engines are code, so one is given out only if its sidecar says that it was compiled from exactly what is
asked for, and after hashing the whole file against the sidecar, at every load. Several processes may use a
folder: a temporary file is locked while it is written, the folder while names change.
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from lamp_trt.engine import atomic_files
from lamp_trt.engine.atomic_files import TEMPORARY_SUFFIX, NewFile, make_folders, remove
from lamp_trt.engine.digests import file_digest
from lamp_trt.engine.errors import BundleError, EngineError, InputError
from lamp_trt.engine.manifest import read_small_file
from lamp_trt.engine.strict_json import decode, parse_object

SCHEMA_VERSION = 1
SIDECAR_SUFFIX = "json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Setting = str | int | float | bool


@dataclass(frozen=True)
class CompiledKey:
    """What an engine was compiled from and for: another value of any field makes another engine.

    network   its name
    backend   "tensorrt", "tensorrt_rtx" or "aotinductor"
    graph     digest of the graph without the places of its weights
    weights   digest of the weight files whose values are baked in; "" if weights are attached at load
    motion    sha256 of the motion file that is baked in; "" if motions can be exchanged, or there is none
    profile   shapes that it accepts, by input
    flags     whatever else the compiler was told
    compiler  like "tensorrt 10.16.1"
    device    like "sm_90", or "x86_64 avx512" for a CPU
    """

    network: str
    backend: str
    graph: str
    weights: str
    motion: str
    profile: Mapping[str, Setting]
    flags: Mapping[str, Setting]
    compiler: str
    device: str

    def digest(self) -> str:
        """sha256 over the fields as canonical JSON."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @property
    def stem(self) -> str:
        """The name of the engine's files without suffix."""
        return f"{self.network}-{self.digest()[:16]}"


@dataclass(frozen=True)
class CompiledEngine:
    """An engine's file. `extra`: what its makers noted of it, such as the digest of the bundle."""

    path: Path
    key: CompiledKey
    extra: Mapping[str, Setting]


@dataclass(frozen=True)
class _Sidecar:
    schema_version: int
    key: CompiledKey
    file: str
    size: int
    sha256: str
    extra: Mapping[str, Setting]


def find(folder: Path, key: CompiledKey, rebuild: str) -> CompiledEngine:
    """The engine for `key` in `folder`, after reading all of it.

    EngineError, with the command `rebuild`, if it is not there (then saying how the nearest one for that
    network differs), is damaged, or is not what its sidecar says.
    """
    path = folder / f"{key.stem}.{SIDECAR_SUFFIX}"
    try:
        sidecar = _read_sidecar(path)
    except FileNotFoundError:
        raise EngineError(f"{_why_missing(folder, key)} Build it: {rebuild}") from None
    except BundleError as error:
        raise EngineError(f"{path}: {error}. Build the engine again: {rebuild}") from error
    engine = folder / sidecar.file
    try:
        intact = engine.stat().st_size == sidecar.size and file_digest(engine) == sidecar.sha256
    except (OSError, InputError) as error:
        raise EngineError(
            f"{engine} is missing or cannot be read ({error}). Build it again: {rebuild}"
        ) from error
    if sidecar.key != key or not intact:
        raise EngineError(
            f"{engine} is not what {path.name} says it is; it was damaged or exchanged, and is not loaded. "
            f"Build it again: {rebuild}"
        )
    return CompiledEngine(engine, key, sidecar.extra)


def has(folder: Path, key: CompiledKey) -> bool:
    """Whether `folder` seems to hold an engine for `key`: its sidecar fits, and the file's size."""
    try:
        sidecar = _read_sidecar(folder / f"{key.stem}.{SIDECAR_SUFFIX}")
        return sidecar.key == key and (folder / sidecar.file).stat().st_size == sidecar.size
    except (OSError, BundleError):
        return False


def known(folder: Path) -> list[CompiledEngine]:
    """Every engine in `folder` that a sidecar tells of; nothing is hashed, they are to be looked at only."""
    engines = []
    for path in sorted(folder.glob(f"*-*.{SIDECAR_SUFFIX}")):
        try:
            sidecar = _read_sidecar(path)
        except (OSError, BundleError):
            continue  # `find` and `store` treat it as absent too, or say what is wrong with it
        engines.append(CompiledEngine(folder / sidecar.file, sidecar.key, sidecar.extra))
    return engines


def store(
    folder: Path,
    key: CompiledKey,
    suffix: str,
    extra: Mapping[str, Any],
    write: Callable[[BinaryIO], None],
) -> CompiledEngine:
    """Put the engine that `write` writes into `folder`, in place of an earlier one of the same key.

    Durable when this returns; an exception or Ctrl-C on the way leaves nothing behind, and what a killed
    process left is swept by the next call. EngineError if the folder cannot be written to.
    """
    assert _NETWORK.fullmatch(key.network), key.network
    assert _FILE.fullmatch(f"{key.stem}.{suffix}"), suffix
    path, sidecar = folder / f"{key.stem}.{suffix}", folder / f"{key.stem}.json"
    with _writing(folder):
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            with written_file(temporary) as file:
                write(cast(BinaryIO, file))
            entry = {
                "sidecar_version": SIDECAR_VERSION,
                "key": dataclasses.asdict(key),
                "file": path.name,
                "size": temporary.stat().st_size,
                "sha256": file_digest(temporary),
                "built": time.time(),
                "extra": dict(extra),
            }
            remove(sidecar)  # an old record beside a new file would call it damaged
            rename(temporary, path)
        except BaseException:
            remove(temporary)
            raise
        with replacing(sidecar) as file:
            file.write(_canonical(entry, indent=2) + b"\n")
    return CompiledEngine(path, key, dict(extra))


def chosen(folder: Path, key: CompiledKey) -> CompiledKey:
    """`key` with profile and flags of the engine that was built last among those equal to it in all else.

    Profile and flags are the builder's choice, not a fact of bundle or machine: who loads takes what is there.
    `key` itself if there is no such engine.
    """
    alike = [entry for entry in _sidecars(folder, key) if set(_differences(entry.key, key)) <= _CHOICES]
    if not alike:
        return key
    last = max(alike, key=lambda entry: entry.built)
    return dataclasses.replace(key, profile=last.key.profile, flags=last.key.flags)


@dataclass(frozen=True)
class _Sidecar:
    key: CompiledKey
    file: str
    size: int
    sha256: str
    built: float
    extra: Mapping[str, Any]


def _read_sidecar(path: Path) -> _Sidecar:
    """FileNotFoundError if there is none, EngineError if it is none."""
    try:
        document = parse_object(read_small_file(path))
        version = document.pop("sidecar_version", None)
        if version != SIDECAR_VERSION:
            raise BundleError(f"sidecar_version is {version!r}, this lamp-trt reads {SIDECAR_VERSION}")
        entry: _Sidecar = decode(_Sidecar, document, "")
        if not _FILE.fullmatch(entry.file) or not entry.file.startswith(f"{path.stem}."):
            raise BundleError(f"file is {entry.file!r:.100}, expected {path.stem}.*")
    except BundleError as error:
        raise EngineError(f"{path}: {error}. Delete it, and build the engine again.") from error
    return entry


def _sidecars(folder: Path, key: CompiledKey) -> list[_Sidecar]:
    """The readable records of compiled engines of the key's network and backend."""
    entries = []
    for path in sorted(folder.glob(f"{key.network}-*.json")):
        try:
            entry = _read_sidecar(path)
        except (FileNotFoundError, EngineError):
            continue  # removed meanwhile, or of no use: it is not the one that was asked for
        if (entry.key.network, entry.key.backend) == (key.network, key.backend):
            entries.append(entry)
    return entries


def _why_missing(folder: Path, key: CompiledKey) -> str:
    others = _sidecars(folder, key)
    if not others:
        return f"{folder} holds no {key.backend} engine of {key.network}."
    nearest = min(others, key=lambda entry: (len(_differences(entry.key, key)), -entry.built))
    reasons = [_explain(name, nearest.key, key) for name in _differences(nearest.key, key)]
    return f"The {key.backend} engine {nearest.file} in {folder} {'; it '.join(reasons)}."


def _differences(there: CompiledKey, wanted: CompiledKey) -> list[str]:
    """Fields in which two keys differ, the most telling first."""
    return [name for name in _TELLING if _plain(getattr(there, name)) != _plain(getattr(wanted, name))]


def _explain(name: str, there: CompiledKey, wanted: CompiledKey) -> str:
    """What a difference means, continuing "the engine …"."""
    old, new = getattr(there, name), getattr(wanted, name)
    if name == "device":
        return f"was built for {old}, this is {new}"
    if name == "compiler":
        return f"was built by {old}, this is {new}"
    if name == "graph":
        return "was built from another graph than the bundle's: its shapes, precision or networks changed"
    if name == "weights":
        return "was built from other weights than the bundle's"
    if name == "motion":
        what = {"": "none"}
        return (
            f"has motion {what.get(old, old[:12])} baked in, wanted is {what.get(new, new[:12])} "
            "(digests of their files; none means replaceable)"
        )
    if name in _CHOICES:
        parts = sorted(k for k in {*old, *new} if _plain(old.get(k)) != _plain(new.get(k)))
        values = ", ".join(f"{part} is {old.get(part)!r}, wanted is {new.get(part)!r}" for part in parts)
        return f"has another {name.removesuffix('s')}: {values}"
    return f"has {name} {old!r}, wanted is {new!r}"


_CHOICES = {"profile", "flags"}
_TELLING = ("network", "backend", "device", "compiler", "graph", "weights", "motion", "profile", "flags")
_NETWORK = re.compile("[a-z0-9_]{1,64}")
_FILE = re.compile("[a-z0-9_]{1,64}-[0-9a-f]{16}[.](?!json$)[a-z0-9]{1,16}")


def _canonical(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent).encode("ascii")


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON, tuples as lists."""
    return json.loads(_canonical(value))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Alone in writing to `folder`, which is made and cleared of what killed writers left."""
    try:
        make_folders(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                remove(left)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be written to: {error.strerror or error}. Free space, or name another folder: "
            "--engine-dir DIR"
        ) from error
