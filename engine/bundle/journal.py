# SPDX-License-Identifier: Apache-2.0
"""The write-ahead journal of a build: the files that it will put in place, and the keys of their inputs."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.manifest import FileEntry, read_small_file
from lamp_trt.engine.bundle.paths import JOURNAL, check_relative
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.files.strict_json import decode, parse_object, to_line


@dataclass(frozen=True)
class _Record:
    """One line: a file that is put in place (or, with `entry` null, removed by the commit)."""

    path: str
    entry: FileEntry | None


class Journal:
    """build.journal in `folder`: JSON lines, each synced to disk before the change that it announces.

    A line gives the expected state of a file; readers must compare the file's digest. A truncated or damaged
    line ends the journal: it and all later lines are ignored.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.entries: dict[str, FileEntry] = {}
        self.paths: set[str] = set()
        """Every path named, so that a later commit can remove those that its manifest does not name."""
        self._size = 0
        self._file: atomic_files.NewFile | None = None
        try:
            lines = read_small_file(self.path).splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            try:
                record: _Record = decode(_Record, parse_object(line), "")
                check_relative(record.path)
            except BundleError:
                break
            if not line.endswith(b"\n"):
                break
            self._remember(record.path, record.entry)
            self._size += len(line)

    def _remember(self, path: str, entry: FileEntry | None) -> None:
        self.paths.add(path)
        if entry:
            self.entries[path] = entry
        else:
            self.entries.pop(path, None)

    def append(self, path: str, entry: FileEntry | None) -> None:
        """Announce that `path` becomes `entry`, or (None) that the commit removes it."""
        line = to_line(dataclasses.asdict(_Record(path, entry)))
        self._file = self._file or self._open()
        try:
            self._file.write(line)
            self._file.sync()
        except BaseException:
            atomic_files.truncate(self._file.fileno(), self._size)
            raise
        self._size += len(line)
        self._remember(path, entry)

    def _open(self) -> atomic_files.NewFile:
        """Open the journal for appending, without a truncated last line."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = atomic_files.NewFile(self.path, os.open(self.path, flags, 0o666))
        try:
            atomic_files.truncate(file.fileno(), self._size)
            atomic_files.sync_folder(self.path.parent)
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        """Remove the journal after a finished commit."""
        self.close()
        atomic_files.remove(self.path)
