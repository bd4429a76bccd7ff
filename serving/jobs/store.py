# SPDX-License-Identifier: Apache-2.0
"""The durable record of jobs: an SQLite database in the jobs folder, and the files of each job.

One server at a time owns a jobs folder, by a lock that ends with its process.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lamp_trt.engine.errors import InputError, LampError, OutputError
from lamp_trt.engine.files.output import cannot_write

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
_VERSION = 1

_ID = re.compile(r"video_[0-9a-f]{32}")
_OWN_FILE = re.compile(rf"\.?{_ID.pattern}\..+", re.DOTALL)
"""Names in the folder `files`, temporary ones included."""


def new_id() -> str:
    return f"video_{secrets.token_hex(16)}"


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
    """Jobs and their files in a folder. It is made with mode 0700 if it is missing; the mode of another one
    stays, and `files` and the database in it are made for their owner alone.

    Raises InputError for a folder that another server uses, that holds other files where jobs have theirs, or
    that cannot be made; OutputError where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "files"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True, mode=0o700)
            self._files.mkdir(exist_ok=True, mode=0o700)
            self._lock = _opened(folder / "lock")
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            self._claim()
            self._db = _database(folder / "jobs.sqlite3")
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self) -> None:
        """Take the lock. Raises InputError if another server has it, or for files of others where jobs have
        theirs. Hidden ones are a file system's own, like .nfs0001."""
        name = repr(str(self.folder))
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"the jobs folder {name} is used by another server; give each its own --jobs-dir."
            ) from error
        for path in self._files.iterdir():
            if not path.name.startswith(".") and not _OWN_FILE.fullmatch(path.name):
                raise InputError(
                    f"the jobs folder {name} is no server's: its folder 'files' holds {path.name!r:.100}. "
                    "Give a new or an empty folder as --jobs-dir."
                )

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
        """The job of a client's id, which may be any text."""
        return next(self._select("WHERE id = ?", (job,)), None) if _ID.fullmatch(job) else None

    def delete(self, job: str) -> None:
        """Remove all files of a job, which makes room on a full disk, and its record. Raises OutputError."""
        self.remove_files(job)
        with _disk():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

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
        """Remove files of jobs that have no record. Other files stay."""
        known = {str(row[0]) for row in self._db.execute("SELECT id FROM jobs")}
        for path in self._files.iterdir():
            if not _OWN_FILE.fullmatch(path.name):
                continue
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


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _database(path: Path) -> sqlite3.Connection:
    """The open database. Raises InputError for another file or another release's, OutputError where the disk
    is full."""
    try:
        os.close(_opened(path))  # SQLite would make it with the umask's mode; its log gets the database's
        database = sqlite3.connect(path, isolation_level=None)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        _prepare(database, str(path))
    except sqlite3.DatabaseError as error:
        database.close()
        raise InputError(f"{str(path)!r} cannot be used: {error}; remove it.") from error
    except LampError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, name: str) -> None:
    with _disk():
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise InputError(f"{name} is of another release of lamp-trt; give another --jobs-dir.")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.executescript(_SCHEMA)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(f"the job cannot be stored: {error}.") from error
