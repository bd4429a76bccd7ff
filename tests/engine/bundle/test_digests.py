# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamp_trt.engine.bundle import digests
from lamp_trt.engine.bundle.digests import CHUNK_BYTES, DigestCache, file_digest
from lamp_trt.engine.errors import InputError


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache")


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose change is longer ago than what counts as racy."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    monkeypatch.setattr(digests, "RACY_SECONDS", 0.0)
    return path


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    return read


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_the_digest_is_sha256_over_the_digests_of_64_mib_chunks(tmp_path: Path, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(data)
    chunks = [data[start : start + (64 << 20)] for start in range(0, size, 64 << 20)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)).hexdigest()
    assert file_digest(tmp_path / "file") == expected


def test_an_unchanged_file_is_read_once_by_any_number_of_caches(
    old_file: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _count_reads(monkeypatch)
    expected = file_digest(old_file)
    assert [cache.digest(old_file), DigestCache(cache.folder).digest(str(old_file))] == [expected] * 2
    assert read == [old_file]
    assert cache.digest(old_file, fresh=True) == expected
    assert read == [old_file] * 2


@pytest.mark.parametrize("change", ["rewrite", "replace", "touch"])
def test_a_changed_file_is_read_again(
    old_file: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    cache.digest(old_file)
    status = old_file.stat()
    time.sleep(0.02)  # longer than the granularity of a local file system's time stamps
    if change == "replace":
        (old_file.parent / "new").write_bytes(b"WEIGHTS")
        (old_file.parent / "new").rename(old_file)
    elif change == "rewrite":
        old_file.write_bytes(b"WEIGHTS")
    os.utime(
        old_file, ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # hides the change from mtime, not from ctime
    read = _count_reads(monkeypatch)
    assert cache.digest(old_file) == file_digest(old_file)
    assert read == [old_file]


def test_the_digest_of_a_file_just_written_is_not_remembered(tmp_path: Path, cache: DigestCache) -> None:
    (tmp_path / "new").write_bytes(b"new")
    assert cache.digest(tmp_path / "new") == file_digest(tmp_path / "new")
    assert not cache.folder.exists()


def test_a_clock_that_went_backwards_only_costs_reading(
    tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert cache.digest(tmp_path / "new") == file_digest(tmp_path / "new")
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"digest": 1}', b'{"digest": "xyz"}', b"[" * 100_000]
)
def test_a_damaged_entry_counts_as_absent(old_file: Path, cache: DigestCache, damage: bytes) -> None:
    expected = cache.digest(old_file)
    (entry,) = cache.folder.iterdir()
    entry.write_bytes(damage)
    assert cache.digest(old_file) == expected
    assert len(list(cache.folder.iterdir())) == 1


def test_a_wrong_entry_does_not_accuse_a_good_file(old_file: Path, cache: DigestCache) -> None:
    expected = file_digest(old_file)
    cache.record(old_file, "0" * 64)
    assert cache.digest(old_file) == "0" * 64
    assert cache.matches(old_file, expected)
    assert cache.digest(old_file) == expected
    assert not cache.matches(old_file, "1" * 64)


def test_without_a_cache_folder_digests_are_computed_and_it_is_said_once(
    old_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DigestCache(tmp_path / "file" / "cache")
    assert cache.digest(old_file) == cache.digest(old_file) == file_digest(old_file)
    assert len(caplog.records) == 1
    assert "files are read in full by every run" in caplog.records[0].message


def test_what_is_no_readable_file_is_refused(tmp_path: Path, cache: DigestCache) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in ((tmp_path / "fifo", "is not a regular file"), (tmp_path, "not a regular file")):
        with pytest.raises(InputError, match=message):
            cache.digest(path)
    with pytest.raises(InputError, match=r"cannot read .*missing: No such file"):
        cache.digest(tmp_path / "missing")


def test_a_file_that_changes_while_it_is_read_is_refused(
    old_file: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_meanwhile(path: Path) -> str:
        path.write_bytes(b"longer than before")
        return "0" * 64

    monkeypatch.setattr(digests, "file_digest", change_meanwhile)
    with pytest.raises(InputError, match="changed while it was read"):
        cache.digest(old_file)


def test_many_processes_share_one_cache(old_file: Path, cache: DigestCache) -> None:
    code = (
        "import sys, pathlib; from lamp_trt.engine.bundle import digests; digests.RACY_SECONDS = 0.0\n"
        "cache = digests.DigestCache(pathlib.Path(sys.argv[1]))\n"
        "for _ in range(200): print(cache.digest(sys.argv[2], fresh=True))"
    )
    command = [sys.executable, "-c", code, str(cache.folder), str(old_file)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert outputs == [[file_digest(old_file)] * 200] * 3
    assert len(list(cache.folder.iterdir())) == 1


def test_a_sparse_file_of_gigabytes_is_slow_only_once(
    tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(digests, "RACY_SECONDS", 0.0)
    expected = cache.digest(path)
    read = _count_reads(monkeypatch)
    assert cache.digest(path) == expected
    assert read == []
