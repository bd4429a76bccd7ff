# SPDX-License-Identifier: Apache-2.0
"""The durable record of jobs: an SQLite database in the jobs folder, and the files of each job.

One server at a time owns a jobs folder, by a lock that ends with its process.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lamp_trt.engine.errors import InputError, OutputError

Status = Literal["queued", "in_progress", "completed", "failed"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL,
  finished_at REAL,
  record TEXT NOT NULL
);
PRAGMA user_version = 1;
"""


@dataclass(frozen=True)
class JobRecord:
    """One job as it is stored. Times are seconds since 1970.

    options: of the pipeline. has_frame: a first frame was uploaded. tries: engines that it was started on.
    error: `code` and `message` of a failed one. clip: of an edit, `start`, `every` and `video`, the finished
    job that is edited, or None for an upload.
    """

    id: str
    prompt: str
    motion: str
    options: Mapping[str, Any]
    fps: float
    has_frame: bool
    created_at: float
    status: Status = "queued"
    started_at: float | None = None
    finished_at: float | None = None
    tries: int = 0
    error: Mapping[str, str] | None = field(default=None)
    clip: Mapping[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.status in ("completed", "failed")


class JobStore:
    """Jobs and their files in a folder, which is made with mode 0700 if it is missing.

    Raises InputError if another server uses the folder or it cannot be made, OutputError where the disk is
    full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "files"
        try:
            self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"the jobs folder {str(folder)!r} cannot be used: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise InputError(
                f"the jobs folder {str(folder)!r} is used by another server; give each its own --jobs-dir."
            ) from error
        try:
            self._db = sqlite3.connect(folder / "jobs.sqlite3", isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise InputError(f"{folder / 'jobs.sqlite3'} cannot be used: {error}; remove it.") from error

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def add(self, job: JobRecord) -> None:
        with _disk():
            self._db.execute("INSERT INTO jobs (id, status, record) VALUES (?, ?, ?)", self._row(job))

    def change(self, job: JobRecord, **changes: Any) -> JobRecord:
        """Store and return `job` with changes; a job that was deleted meanwhile stays deleted."""
        changed = replace(job, **changes)
        with _disk():
            self._db.execute(
                "UPDATE jobs SET status = ?2, record = ?3, finished_at = ?4 WHERE id = ?1",
                (*self._row(changed), changed.finished_at),
            )
        return changed

    def get(self, job: str) -> JobRecord | None:
        return next(self._select("WHERE id = ?", (job,)), None)

    def delete(self, job: str) -> None:
        """Remove a record and all files of its job."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        self.remove_files(job)

    def unfinished(self) -> list[JobRecord]:
        """Queued and running jobs, oldest first."""
        return [*self._select("WHERE status IN ('queued', 'in_progress') ORDER BY number")]

    def expired(self, before: float) -> list[str]:
        """Jobs that finished before a time."""
        rows = self._db.execute("SELECT id FROM jobs WHERE finished_at < ?", (before,))
        return [str(row[0]) for row in rows]

    def page(self, limit: int, after: str | None, newest_first: bool) -> list[JobRecord]:
        """At most `limit` jobs after the job `after`, in order of creation."""
        where, order = ("<", "DESC") if newest_first else (">", "ASC")
        if after is None:
            return [*self._select(f"ORDER BY number {order} LIMIT ?", (limit,))]
        start = "(SELECT number FROM jobs WHERE id = ?)"
        return [
            *self._select(f"WHERE number {where} {start} ORDER BY number {order} LIMIT ?", (after, limit))
        ]

    def video(self, job: str) -> Path:
        return self._files / f"{job}.mp4"

    def sidecar(self, job: str) -> Path:
        return self._files / f"{job}.mp4.json"

    def first_frame(self, job: str) -> Path:
        return self._files / f"{job}.npy"

    def clip(self, job: str) -> Path:
        """An uploaded clip that the job edits."""
        return self._files / f"{job}.clip"

    def remove_input(self, job: str) -> None:
        self.first_frame(job).unlink(missing_ok=True)
        self.clip(job).unlink(missing_ok=True)

    def remove_files(self, job: str) -> None:
        """Remove all files of a job."""
        self.remove_input(job)
        self.remove_output(job)

    def remove_output(self, job: str) -> None:
        """Remove what an engine wrote for a job, temporary files of one that was killed included."""
        for path in (self.video(job), self.sidecar(job)):
            path.unlink(missing_ok=True)
        for scratch in self._files.glob(f".{job}.*"):
            _remove_scratch(scratch)

    def sweep(self) -> None:
        """Remove files that belong to no job."""
        known = {str(row[0]) for row in self._db.execute("SELECT id FROM jobs")}
        for path in self._files.iterdir():
            if path.name.startswith("."):
                _remove_scratch(path)
            elif path.name.partition(".")[0] not in known:
                path.unlink(missing_ok=True)

    def _row(self, job: JobRecord) -> tuple[str, str, str]:
        return job.id, job.status, json.dumps(asdict(job))

    def _select(self, rest: str, values: tuple[object, ...] = ()) -> Iterator[JobRecord]:
        for (record,) in self._db.execute(f"SELECT record FROM jobs {rest}", values).fetchall():
            yield JobRecord(**json.loads(record))


def _remove_scratch(path: Path) -> None:
    """A temporary folder of engine/files/output.py or a temporary file."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(f"the job cannot be stored: {error}.") from error
