# SPDX-License-Identifier: Apache-2.0
"""Digests of files, and a cache that avoids reading unchanged files again."""

import hashlib
import json
import os
import re
import stat
import time
from pathlib import Path

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.user_cache import cache_folder, keep

CHUNK_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_MAX_THREADS = 8

RACY_SECONDS = 2.0
"""A file changed this recently may change again with equal time stamps, so its digest is not cached."""


def file_digest(path: str | os.PathLike[str]) -> str:
    """sha256 over the concatenated sha256 digests of the 64 MiB chunks of a file, in hexadecimal.

    Chunks are hashed by several threads. An empty file has no chunks. InputError if it is not a
    readable regular file, or shrinks while it is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{os.fspath(path)} is not a regular file")
            return _descriptor_digest(descriptor, status.st_size, path)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)}: {error.strerror}") from error


def _descriptor_digest(descriptor: int, size: int, path: str | os.PathLike[str]) -> str:
    def chunk_digest(start: int) -> bytes:
        end = min(start + CHUNK_BYTES, size)
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, end - start)))
        while start < end:
            count = os.preadv(descriptor, [buffer[: end - start]], start)
            if count == 0:
                raise InputError(
                    f"{os.fspath(path)} became shorter while it was read; leave it alone and retry"
                )
            digest.update(buffer[:count])
            start += count
        return digest.digest()

    starts = range(0, size, CHUNK_BYTES)
    if len(starts) < 2:
        return hashlib.sha256(b"".join(map(chunk_digest, starts))).hexdigest()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1, _MAX_THREADS)) as pool:
        return hashlib.sha256(b"".join(pool.map(chunk_digest, starts))).hexdigest()


FileIdentity = tuple[int, int, int, int]


def file_identity(status: os.stat_result) -> FileIdentity:
    """(size, mtime_ns, inode, ctime_ns): if two are equal, the file was not written in between."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


class DigestCache:
    """Cached digests by path and file identity, one small file per entry in the user's cache folder.

    Safe for concurrent processes: entries are replaced atomically, and an unreadable one counts as missing.
    For checkpoints and bundle files, not for compiled engines, which are code and are hashed at every load.
    Without a writable cache folder every digest is computed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("digests")
        self._can_write = self.folder is not None

    def digest(self, path: str | os.PathLike[str], *, fresh: bool = False) -> str:
        """The digest of a file, from the cache if its identity is unchanged and not `fresh`.

        InputError if it cannot be read or changes while it is read.
        """
        path = Path(os.path.realpath(path))
        before = self._identity(path)
        if not fresh and (known := self._read(path, before)):
            return known
        digest = file_digest(path)
        if self._identity(path) != before:
            raise InputError(f"{path} changed while it was read; leave it alone and retry")
        self._write(path, before, digest)
        return digest

    def matches(self, path: str | os.PathLike[str], digest: str, *, fresh: bool = False) -> bool:
        """Whether a file has `digest`. A cached digest that differs is computed again first."""
        return self.digest(path, fresh=fresh) == digest or (
            not fresh and self.digest(path, fresh=True) == digest
        )

    def record(self, path: str | os.PathLike[str], digest: str) -> None:
        """Cache a digest that the caller computed from the current file."""
        path = Path(os.path.realpath(path))
        self._write(path, self._identity(path), digest)

    @staticmethod
    def _identity(path: Path) -> FileIdentity:
        try:
            return file_identity(path.stat())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error

    def _entry(self, path: Path) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:40]}.json"

    def _read(self, path: Path, identity: FileIdentity) -> str | None:
        if self.folder is None:
            return None
        try:
            entry = json.loads(self._entry(path).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("identity") != list(identity):
            return None
        digest = entry.get("digest")
        return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None

    def _write(self, path: Path, identity: FileIdentity, digest: str) -> None:
        _, mtime_ns, _, ctime_ns = identity
        if not self._can_write or time.time() - max(mtime_ns, ctime_ns) / 1e9 < RACY_SECONDS:
            return
        entry = json.dumps({"digest": digest, "identity": identity, "path": os.fspath(path)})
        self._can_write = keep(self._entry(path), entry.encode(), "files are read in full by every run")
