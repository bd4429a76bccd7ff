# SPDX-License-Identifier: Apache-2.0
"""Atomic output files: written under temporary names in the destination's folder, renamed when complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamp_trt.engine.errors import MACHINE_ERRORS, InputError, LampError, OutputError


@contextmanager
def written(*destinations: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary names for `destinations`, which share a folder; the block writes a file or a folder to each.

    When the block ends, they are synced to disk and replace their destinations, in the given order. After an
    error or interrupt they are removed and the destinations are unchanged. OutputError if the disk is full or
    fails, InputError if a destination cannot be written for another reason.
    """
    last = destinations[-1]
    try:
        with tempfile.TemporaryDirectory(prefix=f".{last.name}.", dir=last.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            old.mkdir()
            partial = tuple(new / destination.name for destination in destinations)
            yield partial
            _sync(new)
            _put_in_place(partial, destinations, old)
    except OSError as error:
        raise cannot_write(last, error) from error


def write_text(destination: Path, text: str) -> None:
    """Write one UTF-8 file atomically; file names in `text` that are not UTF-8 are escaped."""
    with written(destination) as (partial,):
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def cannot_write(path: Path, error: OSError) -> LampError:
    """The LampError for an OSError while writing `path`."""
    message = f"{str(path)!r} cannot be written: {error.strerror or error}."
    return OutputError(message) if error.errno in MACHINE_ERRORS else InputError(message)


def _sync(folder: Path) -> None:
    """Sync all files to disk: some file systems report only then that they are full."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())


def _put_in_place(partial: tuple[Path, ...], destinations: tuple[Path, ...], old: Path) -> None:
    """Rename all or none: `old` holds the replaced files, to undo earlier renames when a later one fails."""
    with ExitStack() as undo:
        for source, destination in zip(partial, destinations, strict=True):
            kept = old / destination.name
            if source.is_dir() and destination.is_dir():
                destination.rename(kept)
                undo.callback(kept.rename, destination)
            elif not os.path.lexists(destination):
                undo.callback(destination.unlink, missing_ok=True)
            elif destination != destinations[-1]:
                keep_copy(destination, kept)
                undo.callback(kept.replace, destination)
            source.replace(destination)
        undo.pop_all()


def keep_copy(path: Path, kept: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, kept, follow_symlinks=False)


def lies_in(path: Path, other: Path) -> bool:
    """Whether `path` is the file `other`, also by another name, or lies in the folder `other`."""
    own, place = os.path.realpath(path), os.path.realpath(other)
    same_file = os.path.exists(own) and os.path.exists(place) and os.path.samefile(own, place)
    return same_file or own == place or own.startswith(f"{place}{os.sep}")
