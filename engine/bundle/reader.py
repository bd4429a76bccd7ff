# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle: a complete, verified folder, or an error that names the problem.

Files may be links to anywhere: digests decide whether a bundle is intact.
"""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lamp_trt.engine.bundle.digests import DigestCache, FileIdentity, file_digest, file_identity
from lamp_trt.engine.bundle.manifest import (
    Manifest,
    MotionEntry,
    NetworkEntry,
    manifest_digest,
    read_manifest,
    rebuild_command,
)
from lamp_trt.engine.bundle.paths import (
    ENGINES,
    JOURNAL,
    LOCK,
    MANIFEST,
    PENDING,
    inside,
    possible_path,
    weights_path,
)
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.files.links import linked_part, meant_folder, unreadable

Verify = Literal["stat", "full", "none"]

_READABLE = "Make it readable (chmod -R a+rX), or get the bundle again from where it came from"
_COMMIT_WAIT_S = 1.0
"""Longest wait of a reader for a commit in progress, which takes a few renames."""


@dataclass(frozen=True)
class Bundle:
    """An open bundle. `digest` pins it: sha256 of bundle.json, which holds the digest of every other file."""

    path: Path
    manifest: Manifest
    digest: str
    identities: dict[str, FileIdentity]
    """The identity of each file when it was checked; files without an entry are not compared again."""
    _graphs: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: Verify = "stat",
        expect_digest: str | None = None,
        cache: DigestCache | None = None,
    ) -> "Bundle":
        """Open the bundle at `path`, after checking that every file is there with the right size and digest.

        verify: "stat" trusts a cached digest while a file's identity is unchanged (`DigestCache`), "full"
        reads every byte, "none" compares sizes only. expect_digest: the required `digest`. BundleError names
        the file or field that is wrong; InputError for bad arguments.
        """
        if verify not in ("stat", "full", "none"):
            raise InputError(f"verify is {verify!r}, expected 'stat', 'full' or 'none'")
        folder = Path(os.path.abspath(possible_path(path)))
        cache = cache or DigestCache()
        deadline = time.monotonic() + _COMMIT_WAIT_S
        while True:
            identity = _identity(folder / MANIFEST)  # changes with every commit, even if commits cancel out
            manifest, data = _read(folder)
            _check_expected(folder, manifest_digest(data), expect_digest)
            trouble: BundleError | None = None
            try:
                identities = _check_files(folder, manifest, verify, cache)
            except BundleError as error:
                trouble = error
            # In this order: a commit that ends between the two checks changes the result of the second.
            if not os.path.lexists(folder / PENDING) and _identity(folder / MANIFEST) == identity:
                if trouble:
                    raise trouble
                return cls(folder, manifest, manifest_digest(data), identities)
            if time.monotonic() > deadline:
                raise BundleError(
                    f"{folder} is being replaced by another build, or such a build was interrupted. "
                    f"Wait for it, or finish it: {rebuild_command(folder)}"
                )
            time.sleep(0.02)

    def path_of(self, relative: str) -> Path:
        """The path of a file named in the manifest. BundleError if it is not named, or has changed."""
        if relative not in self.manifest.files:
            raise BundleError(
                f"{self.path} holds no file {relative!r}; known: {_listing(self.manifest.files)}"
            )
        self.check_unchanged([relative])
        return inside(self.path, relative)

    def network(self, name: str) -> NetworkEntry:
        """The manifest's entry of a network. BundleError, listing the known ones, if it is missing."""
        if name not in self.manifest.networks:
            known = _listing(self.manifest.networks)
            raise BundleError(f"{self.path} holds no network {name!r}; known: {known}")
        return self.manifest.networks[name]

    def graph_path(self, network: str) -> Path:
        """The ONNX file of a network."""
        return self.path_of(self.network(network).graph)

    def graph_bytes(self, network: str) -> bytes:
        """The bytes of a network's ONNX file, cached: the file changes when another process makes another
        motion the default, and this bundle's motions still need the graph as opened."""
        if network not in self._graphs:
            self._graphs[network] = self.graph_path(network).read_bytes()
        return self._graphs[network]

    def network_files(self, network: str) -> list[str]:
        """The files that a network is loaded from, without the motion's."""
        entry = self.network(network)
        return [entry.graph, weights_path(entry.component)]

    def motion(self, name: str | None = None) -> MotionEntry:
        """The manifest's entry of a motion (None: the default). BundleError, listing the known ones, if it
        is missing."""
        name = self.manifest.default_motion if name is None else name
        if name not in self.manifest.motions:
            added = "" if name is None else _added_since(self.path, name)
            raise BundleError(
                f"{self.path} holds no motion {name!r}; known: {_listing(self.manifest.motions)}. "
                + (added or f"Add one: lamp-trt motion add {self.path} …")
            )
        return self.manifest.motions[name]

    def motion_path(self, name: str | None = None) -> Path:
        """The file of a motion (None: the default). BundleError if it is missing or has changed."""
        return self.path_of(self.motion(name).file)

    def tokenizer_folder(self, name: str) -> Path:
        """The folder of a tokenizer. BundleError, listing the known ones, if it is missing."""
        if name not in self.manifest.tokenizers:
            known = _listing(self.manifest.tokenizers)
            raise BundleError(f"{self.path} holds no tokenizer {name!r}; known: {known}")
        return inside(self.path, str(self.manifest.tokenizers[name]["folder"]))

    @property
    def engine_folder(self) -> Path:
        """Default folder of compiled engines; it need not exist, and the manifest does not list its files."""
        return self.path / ENGINES

    def check_unchanged(self, files: Iterable[str] | None = None) -> None:
        """BundleError if one of `files` (None: all) has changed since `open`.

        Called before a file is read, and after networks were loaded. A file with another identity (touched,
        linked, other permissions) is read again and compared by digest.
        """
        for relative in list(self.identities) if files is None else files:
            path = inside(self.path, relative)
            identity = _identity(path)
            if identity == self.identities.get(relative, identity):
                continue
            entry = self.manifest.files[relative]
            if identity is None or identity[0] != entry.size or not _has_digest(path, entry.sha256):
                raise BundleError(
                    f"{relative} in {self.path} changed while the bundle was in use: load it again"
                )
            self.identities[relative] = identity


def _read(folder: Path) -> tuple[Manifest, bytes]:
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        remedy = rebuild_command(folder)
        if any(os.path.lexists(folder / name) for name in (JOURNAL, LOCK, PENDING)):
            raise BundleError(
                f"{folder} is an unfinished bundle: its build is running or was interrupted. "
                f"Run the build again, finished parts are kept: {remedy}"
            ) from None
        meant = meant_folder(folder, (MANIFEST,))
        if meant:
            raise BundleError(f"{folder} is not a bundle: it has no bundle.json. {meant}") from None
        state = "has no bundle.json" if folder.is_dir() else "does not exist"
        raise BundleError(f"{folder} is not a bundle: it {state}. Make one: {remedy}") from None


def _added_since(folder: Path, motion: str) -> str:
    """Remedy if the bundle on disk has the motion by now, else ""."""
    try:
        manifest, _ = read_manifest(folder)
    except (BundleError, FileNotFoundError):
        return ""
    return "It was added since: load the bundle again" if motion in manifest.motions else ""


def _check_expected(folder: Path, digest: str, expected: str | None) -> None:
    if expected is None:
        return
    if not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise InputError(f"expected bundle digest is {expected!r:.100}, which is not 64 hexadecimal digits")
    if digest != expected.lower():
        raise BundleError(f"{folder} has digest {digest}, expected {expected.lower()}: it is another bundle")


def _check_files(
    folder: Path, manifest: Manifest, verify: Verify, cache: DigestCache
) -> dict[str, FileIdentity]:
    identities = {}
    for relative, entry in manifest.files.items():
        identities[relative] = _status(folder, relative)
        size = identities[relative][0]
        if size != entry.size:
            raise _damaged(folder, relative, f"it has {size} bytes, {MANIFEST} says {entry.size}")
        if verify == "none":
            continue
        try:
            intact = cache.matches(inside(folder, relative), entry.sha256, fresh=verify == "full")
        except InputError as error:
            remedy = f". {_READABLE}" if isinstance(error.__cause__, OSError) else ""
            raise BundleError(f"{relative} in {folder}: {error}{remedy}") from error
        if not intact:
            raise _damaged(folder, relative, f"its digest is not the one in {MANIFEST}")
    return identities


def _status(folder: Path, relative: str) -> FileIdentity:
    path = inside(folder, relative)
    problem = unreadable(path)
    if problem is None:
        identity = _identity(path)
        if identity is not None:
            return identity
        problem = "is missing"
    where = f"{problem} in {folder}" if problem == "is missing" else f"in {folder} {problem}"
    remedy = _READABLE if problem.startswith("cannot be read") else _remedy(folder, relative)
    raise BundleError(f"{relative} {where}. {remedy}")


def _identity(path: Path) -> FileIdentity | None:
    """None if the file is missing; the caller reports it."""
    try:
        return file_identity(path.stat())
    except OSError:
        return None


def _has_digest(path: Path, sha256: str) -> bool:
    """Whether the file exists with that digest."""
    try:
        return file_digest(path) == sha256
    except InputError:
        return False


def _damaged(folder: Path, relative: str, problem: str) -> BundleError:
    link = linked_part(inside(folder, relative), folder)
    if link is not None:
        problem += f"; it is read through a link, from {os.path.realpath(folder / relative)}"
    return BundleError(f"{relative} in {folder} is damaged: {problem}. {_remedy(folder, relative)}")


def _remedy(folder: Path, relative: str) -> str:
    """Remedy for a damaged or missing file. Builds do not write through links."""
    if linked_part(inside(folder, relative), folder) is not None:
        return "Get it again from where the bundle came from"
    return f"Make it again: {rebuild_command(folder)}"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
