# SPDX-License-Identifier: Apache-2.0
"""Atomic file operations: the system calls that change files, and functions composed of them.

The bundle's code changes files only through the first group of functions, so a crash test can make any of
them fail. The second group never leaves a partial file under a final name.
"""

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".lamp-tmp"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def create(path: Path) -> int:
    """Create an empty file and return its descriptor; FileExistsError if the name exists, also as a
    symlink."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def write(descriptor: int, data: memoryview) -> int:
    return os.write(descriptor, data)


def fsync(descriptor: int) -> None:
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def unlink(path: Path) -> None:
    os.unlink(path)


def mkdir(path: Path) -> None:
    os.mkdir(path)


def truncate(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, size)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Set the file name of an OSError from a call that takes a descriptor to `path`."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def explained(
    folder: Path, explain: Callable[[OSError, bool], Exception], *, or_above: bool = False
) -> Iterator[None]:
    """Replace an OSError about a file in `folder` by `explain(error, whether space ran out)`.

    or_above: also an error about a parent of `folder`, which may have to be created. Errors about other files
    pass unchanged.
    """
    try:
        yield
    except OSError as error:
        named = Path(str(error.filename))
        if not (named.is_relative_to(folder) or (or_above and folder.is_relative_to(named))):
            raise
        raise explain(error, error.errno in _NO_SPACE) from error


class NewFile(io.FileIO):
    """An unbuffered binary file whose `write` writes everything, and whose errors name `path`."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        super().__init__(create(path) if descriptor is None else descriptor, "wb")
        self.path = path

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = written = len(view)
        while written:
            with _naming(self.path):
                count = write(self.fileno(), view)
            view, written = view[count:], written - count
        return size

    def sync(self) -> None:
        with _naming(self.path):
            fsync(self.fileno())


def remove(path: Path) -> None:
    """Unlink `path` if it exists."""
    if os.path.lexists(path):
        unlink(path)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _naming(folder):
            fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Create `folder` and its missing parents, durably."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    try:
        mkdir(folder)
    except FileExistsError:  # another process was faster
        if not folder.is_dir():
            raise
    sync_folder(folder.parent)


@contextmanager
def written_file(path: Path) -> Iterator[NewFile]:
    """A new file at `path`: synced to disk when the block ends, removed if it raises."""
    try:
        with NewFile(path) as file:
            yield file
            file.sync()
    except BaseException:
        remove(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[NewFile]:
    """A file that atomically replaces `path` when the block ends; `path` stays unchanged if it raises."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    with written_file(temporary) as file:
        yield file
    try:
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(path.parent)
