# SPDX-License-Identifier: Apache-2.0
"""The names of a bundle's files, and the making of those that it lacks."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lamp_trt.engine.bundle.atomic_files import NewFile
from lamp_trt.engine.bundle.manifest import FileEntry
from lamp_trt.engine.bundle.writer import BundleWriter

log = logging.getLogger("lamp_trt")

GRAPH_KEY = "lamp_trt_key"
"""The metadata entry of a graph that holds its key (without the motion that it points at)."""


@dataclass(frozen=True)
class MadeFile:
    """One file of the bundle after a command; `seconds` is None for a file that was there already."""

    path: str
    size_bytes: int
    seconds: float | None


@dataclass
class BuildReport:
    """What a command made and kept in the bundle at `path`, whose digest is then `digest`."""

    path: Path
    files: list[MadeFile] = field(default_factory=list)
    full_motions: list[str] = field(default_factory=list)
    digest: str = ""
    seconds: float = 0.0


class FileMaker:
    """Makes a bundle's files one after another, each only if its key says that it is not there yet."""

    def __init__(self, writer: BundleWriter, report: BuildReport) -> None:
        self.writer, self.report = writer, report

    def make(self, path: str, key: str, write: Callable[[NewFile], None]) -> FileEntry:
        """Confirm `path` as made from what `key` stands for, or let `write` fill a new one."""
        start = time.monotonic()
        seconds = None
        if not self.writer.have(path, key):
            with self.writer.create(path, key) as file:
                log.info("making %s", path)
                write(file)
            seconds = time.monotonic() - start
        entry = self.writer.files[path]
        self.report.files.append(MadeFile(path, entry.size, seconds))
        return entry
