# SPDX-License-Identifier: Apache-2.0
"""Writing a bundle, by one process at a time, so that a crash at any point leaves it intact.

Adding a file (`create`): temporary name, fsync, digest, journal line, rename. A file that the current
manifest names stays unchanged until the commit; its replacement is *staged* in the same folder under another
name.

Committing (`commit`): without staged files, bundle.json is replaced by one rename. With staged files, the new
manifest is first written as bundle.json.pending. While that exists, readers wait and then refuse; the staged
files replace the old ones, and the rename of the pending manifest to bundle.json ends the commit. The next
writer finishes an interrupted commit. Finally, files that the old manifest or the journal named and the new
manifest does not are removed. Files that neither named (the user's) and engines/ stay.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.atomic_files import (
    TEMPORARY_SUFFIX,
    NewFile,
    make_folders,
    remove,
    replacing,
    sync_folder,
)
from lamp_trt.engine.bundle.digests import DigestCache, file_digest
from lamp_trt.engine.bundle.journal import Journal
from lamp_trt.engine.bundle.manifest import (
    FileEntry,
    Manifest,
    manifest_digest,
    read_manifest,
    read_small_file,
)
from lamp_trt.engine.bundle.paths import (
    ENGINES,
    JOURNAL,
    LOCK,
    MANIFEST,
    PENDING,
    STAGED_SUFFIX,
    check_relative,
    copy_remedy,
    own_path,
    refuse_link,
)
from lamp_trt.engine.errors import BundleError

_LOCK_POLL_S = 0.05

log = logging.getLogger("lamp_trt")


class BundleWriter:
    """The exclusive right to change the bundle at `path`, a new or empty folder or an existing bundle.

    `manifest` is the current one on disk, or None. `files` collects the files that `have` confirmed and
    `create` made: the `files` of the manifest to commit. Not thread-safe. Leaving without a commit, by an
    exception or otherwise, keeps finished files for the next writer.

    timeout: seconds to wait for another writer; None: without limit. BundleError if the folder holds
    something else, has files that are links or cannot be written, or at the timeout.
    """

    manifest: Manifest | None
    files: dict[str, FileEntry]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        cache: DigestCache | None = None,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self._timeout = timeout
        self._cache = cache or DigestCache()
        self._lock = -1

    def __enter__(self) -> "BundleWriter":
        with self._explained("the folder"):
            _prepare_folder(self.path)
            _refuse_links(self.path)
            self._lock = _locked(self.path, self._timeout)
            try:
                self._recover()
            except BaseException:
                os.close(self._lock)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._journal.close()
        os.close(self._lock)

    def _recover(self) -> None:
        self._journal = Journal(self.path)
        if os.path.lexists(self.path / PENDING):
            log.info("finishing the interrupted commit of %s", self.path)
            self._finish_commit(read_manifest(self.path, PENDING)[0])
        _remove_leftovers(self.path, set(self._journal.entries))
        try:
            self.manifest = read_manifest(self.path)[0]
        except FileNotFoundError:
            self.manifest = None
        else:
            self._finish_clearing()
        self.files = {}

    def _finish_clearing(self) -> None:
        """Finish a commit that was interrupted after its manifest was in place: remove the files that it
        announced to remove, and the journal if it announces nothing else."""
        removed = self._journal.paths - self._journal.entries.keys()
        gone = [self._final(path) for path in sorted(removed) if not self._old(path)]
        self._unlink([path for path in gone if os.path.lexists(path)])
        entries = self._journal.entries.items()
        if all(
            self._old(path) == entry and not os.path.lexists(self._staged(path)) for path, entry in entries
        ):
            self._journal.delete()

    def path_of(self, relative: str) -> Path:
        """The current path of a file of `files`: its final one, or the staged one until the commit."""
        staged = self._staged(relative)
        return staged if relative in self.files and staged.exists() else self._final(relative)

    def have(self, relative: str, key: str) -> bool:
        """Whether `relative`, made from the inputs of `key`, exists undamaged; if so, it is added to
        `files`."""
        final, staged = self._final(check_relative(relative)), self._staged(relative)
        journaled, old = self._journal.entries.get(relative), self._old(relative)
        for entry, path in ((journaled, staged), (journaled, final), (old, final)):
            if entry and entry.key == key and self._is_intact(path, entry):
                if path == final and os.path.lexists(staged):
                    self._unlink([staged])
                self.files[relative] = entry
                return True
        return False

    def entry(self, relative: str) -> FileEntry:
        """The entry of a file that this writer made or confirmed, or of the current manifest."""
        entry = self.files.get(relative) or self._old(relative)
        assert entry is not None, relative
        return entry

    def _is_intact(self, path: Path, entry: FileEntry) -> bool:
        if not path.is_file() or path.stat().st_size != entry.size:
            return False
        return self._cache.matches(path, entry.sha256)

    @contextmanager
    def create(self, relative: str, key: str) -> Iterator[NewFile]:
        """Open a new file for `relative`, made from the inputs of `key`.

        It is put in place durably when the block ends, and removed if the block raises. BundleError if the
        disk is full.
        """
        final = self._final(check_relative(relative))
        temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
        with self._explained(relative):
            make_folders(final.parent)
            with atomic_files.written_file(temporary) as file:
                yield file
            try:
                entry = FileEntry(temporary.stat().st_size, file_digest(temporary), key)
                self._journal.append(relative, entry)
                if self._old(relative):
                    atomic_files.rename(temporary, self._staged(relative))
                else:
                    remove(self._staged(relative))
                    atomic_files.rename(temporary, final)
            except BaseException:
                remove(temporary)
                raise
            sync_folder(final.parent)
        self.files[relative] = entry

    def require_free(self, size: int) -> None:
        """BundleError unless `size` bytes are free where the bundle is."""
        free = _free_bytes(self.path)
        if free < size:
            raise BundleError(
                f"{self.path} needs {_gib(size)}, {_gib(free)} are free there. "
                "Free some space there, or take a folder on another disk"
            )

    def commit(self, manifest: Manifest) -> str:
        """Make `manifest` the bundle's, which is then complete, and return its digest.

        Its `files` are entries of this writer's `files` or of the current manifest.
        """
        data = manifest.to_json()
        manifest = Manifest.from_json(data)
        for path, entry in manifest.files.items():
            if entry not in (self.files.get(path), self._old(path)):
                raise BundleError(f"files.{path} was neither made nor confirmed by this writer")
        old_files = self.manifest.files if self.manifest else {}
        with self._explained(MANIFEST):
            for path in sorted(old_files.keys() - manifest.files.keys() - self._journal.paths):
                self._journal.append(path, None)
            named = old_files.keys() | self._journal.paths
            staged = {path for path in named if os.path.lexists(self._staged(path))}
            replaced = staged & manifest.files.keys() & self.files.keys()
            self._unlink([self._staged(path) for path in sorted(staged - replaced)])
            if replaced:
                with replacing(self.path / PENDING) as file:
                    file.write(data)
                self._finish_commit(manifest)
            elif not self._is_current(data):
                with replacing(self.path / MANIFEST) as file:
                    file.write(data)
            unnamed = [self._final(path) for path in sorted(named - manifest.files.keys())]
            self._unlink([path for path in unnamed if os.path.lexists(path)])
            self._journal.delete()
        self.manifest = manifest
        for path, entry in manifest.files.items():
            if path in self.files:
                self._cache.record(self._final(path), entry.sha256)
        return manifest_digest(data)

    def _is_current(self, data: bytes) -> bool:
        return self.manifest is not None and read_small_file(self.path / MANIFEST) == data

    def _finish_commit(self, manifest: Manifest) -> None:
        """Move staged files into place, then the pending manifest. Idempotent."""
        folders = {self.path}
        for path in sorted(manifest.files):
            if os.path.lexists(self._staged(path)):
                atomic_files.rename(self._staged(path), self._final(path))
                folders.add(self._final(path).parent)
        for folder in sorted(folders):
            sync_folder(folder)
        atomic_files.rename(self.path / PENDING, self.path / MANIFEST)
        sync_folder(self.path)

    def _unlink(self, paths: list[Path]) -> None:
        """Remove files durably."""
        for path in paths:
            log.info("removing %s, which is no longer part of %s", path.relative_to(self.path), self.path)
            atomic_files.unlink(path)
        for folder in sorted({path.parent for path in paths}):
            sync_folder(folder)

    def _old(self, relative: str) -> FileEntry | None:
        return self.manifest.files.get(relative) if self.manifest else None

    def _final(self, relative: str) -> Path:
        return own_path(self.path, relative)

    def _staged(self, relative: str) -> Path:
        final = self._final(relative)
        return final.with_name(final.name + STAGED_SUFFIX)

    def _explained(self, what: str) -> AbstractContextManager[None]:
        """Turn OSErrors about this bundle's files into BundleErrors."""

        def explain(error: OSError, no_space: bool) -> BundleError:
            if no_space:
                return BundleError(
                    f"no space left for {what} in {self.path} ({error.strerror}): "
                    f"{_gib(_free_bytes(self.path))} are free. Free some space, or raise the limit, and run "
                    "the same command again, finished parts are kept"
                )
            return BundleError(
                f"cannot write {what} in {self.path}: {error.strerror}. {copy_remedy(self.path)}"
            )

        return atomic_files.explained(self.path, explain)


def _prepare_folder(folder: Path) -> None:
    try:
        make_folders(folder)
        names = set(os.listdir(folder))
    except OSError as error:
        raise BundleError(
            f"cannot use {folder} for a bundle: {error.strerror}. Choose another folder"
        ) from error
    if names and not names & {MANIFEST, PENDING, JOURNAL, LOCK}:
        raise BundleError(f"{folder} is not a bundle and not empty. Choose a new or empty folder")


def _refuse_links(folder: Path) -> None:
    """BundleError if the bundle's files are links, as tools with a store of their own make them."""
    for name in (MANIFEST, PENDING, JOURNAL, LOCK):
        refuse_link(folder, folder / name)
    try:
        manifest, _ = read_manifest(folder)
    except (FileNotFoundError, BundleError):
        return  # read again under the lock, after an interrupted commit is finished
    for path in manifest.files:
        own_path(folder, path)


def _locked(folder: Path, timeout: float | None) -> int:
    """Lock the bundle: a descriptor that holds the lock until it is closed or the process ends."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        remedy = copy_remedy(folder) if os.path.lexists(folder / MANIFEST) else "Choose another folder"
        raise BundleError(f"cannot write to {folder}: {error.strerror}. {remedy}") from error
    start, told = time.monotonic(), False
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if timeout is not None and time.monotonic() - start >= timeout:
                    raise BundleError(
                        f"{folder} is in use by another build or motion command. Try later"
                    ) from None
            except OSError as error:
                raise BundleError(
                    f"{folder} cannot be locked: {error.strerror}. Use a local file system"
                ) from error
            if not told:
                log.warning("waiting for another lamp-trt command that is changing %s", folder)
                told = True
            time.sleep(_LOCK_POLL_S)
    except BaseException:
        os.close(lock)
        raise


def _remove_leftovers(folder: Path, journaled: set[str]) -> None:
    """Remove temporary files, and staged files that the journal does not name."""
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder and ENGINES in folders:
            folders.remove(ENGINES)
        for name in names:
            path = Path(parent, name)
            staged = name.endswith(STAGED_SUFFIX)
            if staged:
                staged = str(path.relative_to(folder)).removesuffix(STAGED_SUFFIX) not in journaled
            if staged or name.endswith(TEMPORARY_SUFFIX):
                atomic_files.unlink(path)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
