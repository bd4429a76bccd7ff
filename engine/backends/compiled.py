# SPDX-License-Identifier: Apache-2.0
"""Engines compiled for one device: a file and a sidecar, <network>-<key>.<suffix> and <network>-<key>.json.

Engines are code, so one is returned only if its sidecar has exactly the requested key and the whole file has
the sidecar's digest, checked at every load. Several processes may use a folder: temporary files are locked
while they are written, the folder while names change.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.atomic_files import TEMPORARY_SUFFIX, NewFile, explained, make_folders, remove
from lamp_trt.engine.bundle.digests import file_digest
from lamp_trt.engine.bundle.manifest import read_small_file
from lamp_trt.engine.errors import BundleError, EngineError, InputError
from lamp_trt.engine.files.strict_json import decode, parse_object

SCHEMA_VERSION = 1
SIDECAR_SUFFIX = "json"

Setting = str | int | float | bool | tuple[int, ...]
Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class CompiledKey:
    """The inputs, options and target of a compilation: engines with different keys are different engines.

    network   name of the network
    backend   "tensorrt", "tensorrt_rtx" or "aotinductor"
    graph     digest of the graph without the locations of its weights
    weights   digest of the weight files whose values are baked in; "" if weights are attached at load
    motion    sha256 of the motion file that is baked in; "" if motions can be exchanged, or there are none
    profile   accepted shapes, by input
    flags     other compiler options
    compiler  like "tensorrt 10.16.1"
    device    like "sm_90", or "x86_64 avx512" for a CPU
    """

    network: str
    backend: str
    graph: str
    weights: str
    motion: str
    profile: Settings
    flags: Settings
    compiler: str
    device: str

    def digest(self) -> str:
        """sha256 over the fields as canonical JSON."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @property
    def stem(self) -> str:
        """The name of the engine's files, without suffix."""
        return f"{self.network}-{self.digest()[:16]}"


@dataclass(frozen=True)
class CompiledEngine:
    """An engine's file. extra: further data from its build, such as the digest of the bundle."""

    path: Path
    key: CompiledKey
    extra: Settings


@dataclass(frozen=True)
class _Sidecar:
    schema_version: int
    key: CompiledKey
    file: str
    size: int
    sha256: str
    built_at: float
    extra: Settings


def find(folder: Path, key: CompiledKey, rebuild: str) -> CompiledEngine:
    """Return the engine for `key` in `folder`, with its contents verified.

    EngineError, with the command `rebuild`, if it is missing (the message says how the most similar engine
    for that network differs), is damaged, or does not match its sidecar.
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
    if sidecar.key.digest() != key.digest() or not intact:
        raise EngineError(
            f"{engine} is not what {path.name} says it is; it was damaged or exchanged, and is not loaded. "
            f"Delete it and build it again: {rebuild}"
        )
    return CompiledEngine(engine, key, sidecar.extra)


def has(folder: Path, key: CompiledKey) -> bool:
    """Whether `folder` holds an engine for `key`, by its sidecar and the file's size; contents are not
    verified."""
    try:
        sidecar = _read_sidecar(folder / f"{key.stem}.{SIDECAR_SUFFIX}")
        fits = sidecar.key.digest() == key.digest()
        return fits and (folder / sidecar.file).stat().st_size == sidecar.size
    except (OSError, BundleError):
        return False


def known(folder: Path) -> list[CompiledEngine]:
    """The engines in `folder` with a readable sidecar, oldest first; contents are not verified."""
    sidecars = []
    for path in sorted(folder.glob(f"*-*.{SIDECAR_SUFFIX}")):
        try:
            sidecars.append(_read_sidecar(path))
        except (OSError, BundleError):
            continue  # not loadable; `find` reports it on request
    sidecars.sort(key=lambda sidecar: sidecar.built_at)
    return [CompiledEngine(folder / s.file, s.key, s.extra) for s in sidecars]


def chosen(folder: Path, key: CompiledKey) -> CompiledKey:
    """`key` with the profile and flags of the latest engine whose other fields are equal; `key` if there is
    none.

    Profile and flags are choices of the build and not properties of the bundle or machine, so loading accepts
    any.
    """
    for engine in reversed(known(folder)):
        candidate = dataclasses.replace(key, profile=engine.key.profile, flags=engine.key.flags)
        if candidate.digest() == engine.key.digest():
            return candidate
    return key


def nearest(folder: Path, keys: Sequence[CompiledKey]) -> CompiledKey:
    """The one of `keys`, all missing, that is most similar to an existing engine, for the message of `find`.

    It has that engine's profile and flags, as in `chosen`; the first key if there is no similar engine.
    """
    pairs = [
        (dataclasses.replace(key, profile=engine.key.profile, flags=engine.key.flags), engine.key)
        for key in keys
        for engine in known(folder)
        if (engine.key.network, engine.key.backend) == (key.network, key.backend)
    ]
    return min(pairs, key=lambda pair: len(_differences(pair[1], pair[0])), default=(keys[0], None))[0]


def prepare_folder(folder: Path) -> None:
    """Create the folder for engines if it is missing. EngineError if it is not writable: called before a long
    compilation whose result could not be stored."""
    with explained(folder, partial(_cannot_write, folder), or_above=True):
        make_folders(folder)
        with _temporary(folder / "writable"):
            pass


def store(
    folder: Path,
    key: CompiledKey,
    suffix: str,
    extra: Settings,
    write: Callable[[BinaryIO], None],
) -> CompiledEngine:
    """Store the output of `write` durably in `folder` as the engine for `key`, replacing an older one.

    suffix: like "plan". The folder is created if missing. A partial file never has the engine's name, and an
    exception of `write` changes nothing. EngineError if the disk is full or the folder not writable.
    """
    final, sidecar = (folder / f"{key.stem}.{ending}" for ending in (suffix, SIDECAR_SUFFIX))
    with explained(folder, partial(_cannot_write, folder), or_above=True):
        make_folders(folder)
        with _temporary(final) as file:
            write(cast(BinaryIO, file))
            file.sync()
            size, digest = file.tell(), file_digest(file.path)
            record = _Sidecar(SCHEMA_VERSION, key, final.name, size, digest, time.time(), dict(extra))
            text = json.dumps(dataclasses.asdict(record), sort_keys=True, indent=2, allow_nan=False) + "\n"
            with _locked(folder):
                remove(sidecar)
                atomic_files.rename(file.path, final)
                with atomic_files.replacing(sidecar) as described:
                    described.write(text.encode("ascii"))
    return CompiledEngine(final, key, dict(extra))


@contextmanager
def _temporary(final: Path) -> Iterator[NewFile]:
    """A new temporary file in the folder of `final`, locked while open, removed at the end if not renamed.

    Unlocked temporary files are leftovers of killed processes and are removed first.
    """
    path = final.with_name(f"{final.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    with _locked(final.parent):
        _remove_leftovers(final.parent)
        file = NewFile(path)
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        try:
            yield file
        finally:
            remove(path)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.is_symlink():
            remove(path)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock for changing names in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError, no_space: bool) -> EngineError:
    problem, remedy = str(error.strerror), "Keep"
    if no_space:
        problem, remedy = f"no space is left ({error.strerror})", "Free some space there, or keep"
    return EngineError(
        f"cannot write a compiled engine to {folder}: {problem}. {remedy} engines elsewhere with --engine-dir"
    )


def _read_sidecar(path: Path) -> _Sidecar:
    """Read a sidecar. FileNotFoundError if it is missing, BundleError if it is invalid."""
    sidecar: _Sidecar = decode(_Sidecar, parse_object(read_small_file(path)), "")
    if sidecar.schema_version != SCHEMA_VERSION:
        raise BundleError(f"schema_version is {sidecar.schema_version}, expected {SCHEMA_VERSION}")
    if Path(sidecar.file).name != sidecar.file or Path(sidecar.file).stem != path.stem:
        raise BundleError(f"file is {sidecar.file!r:.100}, expected {path.stem} with a suffix")
    return sidecar


def _why_missing(folder: Path, key: CompiledKey) -> str:
    others = [engine.key for engine in known(folder) if engine.key.network == key.network]
    same_backend = [other for other in others if other.backend == key.backend]
    if not same_backend:
        return f"{folder} holds no {key.backend} engine for {key.network}."
    nearest = min((_differences(other, key) for other in same_backend), key=len)
    return f"the {key.backend} engine for {key.network} in {folder} {', and '.join(nearest)}."


def _differences(built: CompiledKey, wanted: CompiledKey) -> list[str]:
    """The differences between an existing and a requested engine, as predicates, most important first."""
    texts = []
    if built.device != wanted.device:
        texts.append(f"was built for {built.device}, this device is {wanted.device}")
    if built.compiler != wanted.compiler:
        texts.append(f"was built by {built.compiler}, this is {wanted.compiler}")
    if built.graph != wanted.graph:
        texts.append("was built from another graph")
    if built.weights != wanted.weights:
        texts.append("was built from other weights")
    if built.motion != wanted.motion:
        another = "has another motion baked in"
        baked = "has a motion baked in" if built.motion else "has no motion baked in"
        texts.append(another if built.motion and wanted.motion else baked)
    for kind, was, want in (
        ("profile", built.profile, wanted.profile),
        ("option", built.flags, wanted.flags),
    ):
        for name in sorted({*was, *want}):
            if _plain(was.get(name)) != _plain(want.get(name)):
                texts.append(
                    f"was built with {kind} {name}={was.get(name)}, wanted is {name}={want.get(name)}"
                )
    return texts


def _plain(value: Any) -> Any:
    """A setting as decoded from JSON: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value
