# SPDX-License-Identifier: Apache-2.0
"""The jobs folder: whose files it removes, modes, and what it refuses."""

import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamp_trt.engine.errors import InputError, OutputError
from lamp_trt.serving.jobs.store import JobRecord, JobStore, new_id


def record(name: str) -> JobRecord:
    return JobRecord(name, "rain", "a", {"seed": 1}, 8.0, False, 1.0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["holiday.mp4", "video_1.mp4", "photos", "video_" + "0" * 32])
def test_files_of_others_are_neither_removed_nor_shared_with_jobs(tmp_path: Path, name: str) -> None:
    """--jobs-dir may name a folder in use, whose folder `files` is somebody's."""
    path = tmp_path / "files" / name
    path.parent.mkdir()
    path.mkdir() if name == "photos" else path.write_text("mine")
    with pytest.raises(InputError, match="is no server's"):
        JobStore(tmp_path)
    assert path.exists()
    assert not (tmp_path / "jobs.sqlite3").exists()


def test_a_folder_that_exists_keeps_its_mode_and_jobs_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("mine")
    store = JobStore(tmp_path)
    store.add(record(new_id()))
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "files") == 0o700
    for path in tmp_path.glob("jobs.sqlite3*"):
        assert mode(path) == 0o600, path
    store.close()


def test_files_of_jobs_that_are_gone_are_removed_at_the_start(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    kept, gone = new_id(), new_id()
    store.add(record(kept))
    for job in (kept, gone):
        store.video(job).write_text("x")
        store.sidecar(job).write_text("x")
    (tmp_path / "files" / f".{gone}.mp4.abcd").mkdir()
    (tmp_path / "files" / f".{gone}.mp4.abcd" / "part").write_text("x")
    (tmp_path / "files" / ".nfs0001").write_text("of the file system")
    store.close()
    store = JobStore(tmp_path)
    store.sweep()
    left = {path.name for path in (tmp_path / "files").iterdir()}
    assert left == {f"{kept}.mp4", f"{kept}.mp4.json", ".nfs0001"}
    store.close()


def other_release(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("notes of a meeting " * 100), "not a database; remove it"),
        (lambda path: path.mkdir(), "jobs.sqlite3' cannot be written"),
        (other_release, "another release"),
    ],
    ids=["text", "folder", "release"],
)
def test_another_database_is_refused_and_stays(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "jobs.sqlite3"
    make(path)
    before = path.stat().st_size
    for _ in range(2):  # the lock is free again after the first
        with pytest.raises(InputError, match=message):
            JobStore(tmp_path)
    assert path.stat().st_size == before


def test_a_full_disk_is_no_damaged_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamp_trt.serving.jobs.store.sqlite3.connect", lambda *_, **__: Full())
    with pytest.raises(OutputError, match="is full"):
        JobStore(tmp_path)


class Full:
    def execute(self, text: str, values: object = ()) -> "Full":
        if not text.startswith("PRAGMA user"):
            raise sqlite3.OperationalError("database or disk is full")
        return self

    def fetchone(self) -> tuple[int]:
        return (0,)

    def close(self) -> None: ...


def test_a_job_is_deleted_with_its_files_first(tmp_path: Path) -> None:
    """On a full disk the files make room for the record's removal, and that fails as an OutputError."""
    store = JobStore(tmp_path)
    job = new_id()
    store.add(record(job))
    store.video(job).write_text("x")
    real, store._db = store._db, Full()  # type: ignore[assignment]
    with pytest.raises(OutputError, match="is full"):
        store.delete(job)
    assert not store.video(job).exists()
    store._db = real
    store.delete(job)
    assert store.get(job) is None
    store.close()


def test_a_video_to_edit_is_copied_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT, SMB, some FUSE file systems: link fails with EPERM."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from lamp_trt.serving.web.app import _link_video

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    store = JobStore(tmp_path)
    job, name = replace(record(new_id()), status="completed"), new_id()
    store.video(job.id).write_text("a video")
    front: Any = SimpleNamespace(store=store, get={job.id: job}.get)
    monkeypatch.setattr(os, "link", no_links)
    _link_video(front, job.id, store.clip(name))
    assert store.clip(name).read_text() == "a video"
    store.close()
