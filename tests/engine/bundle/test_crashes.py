# SPDX-License-Identifier: Apache-2.0
"""Crashes at every call that changes the file system, in the manner of SQLite's crash tests.

After the crash no call has any effect any more, as after a SIGKILL. In "power loss" the disk also forgets
what was not made durable: unsynced data are cut in half, unsynced names are undone.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
from tests.fixtures.bundle_cases import FIRST, SECOND, add_motion, build, remove_motion, tree

NAMES = ("create", "write", "fsync", "rename", "unlink", "mkdir", "truncate")


class Crash(BaseException):
    """The process is dead."""


class Disk:
    """Stands in for atomic_files' calls: crashes at call number `crash_at`, knows what is not durable yet."""

    def __init__(self, crash_at: int | None, backups: Path) -> None:
        self.crash_at = crash_at
        self.calls = 0
        self._real = {name: getattr(atomic_files, name) for name in NAMES}
        self._backups = backups
        self._backups.mkdir()
        self._unsynced_data: dict[int, int] = {}  # inode: size that is durable
        self._undo: list[tuple[Path, Callable[[], None]]] = []  # folder whose fsync makes the change durable

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in NAMES:
            monkeypatch.setattr(
                atomic_files, name, lambda *arguments, name=name: self._call(name, *arguments)
            )

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls += 1
        if self.crash_at is not None and self.calls >= self.crash_at:
            if self.calls == self.crash_at and name == "write":
                descriptor, data = arguments
                self._real["write"](descriptor, data[: len(data) // 2])
            raise Crash
        return getattr(self, f"_{name}", self._real[name])(*arguments)

    def _create(self, path: Path) -> Any:
        self._undo.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return self._real["create"](path)

    def _mkdir(self, path: Path) -> None:
        self._undo.append((path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))
        self._real["mkdir"](path)

    def _write(self, descriptor: int, data: memoryview) -> Any:
        status = os.fstat(descriptor)
        self._unsynced_data.setdefault(status.st_ino, status.st_size)
        return self._real["write"](descriptor, data)

    def _fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._unsynced_data.pop(os.fstat(descriptor).st_ino, None)
        self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
        self._real["fsync"](descriptor)

    def _backup(self, path: Path) -> Callable[[], None]:
        """What brings `path` back as it is now."""
        if not path.exists():
            return lambda: path.unlink(missing_ok=True)
        backup = self._backups / str(len(os.listdir(self._backups)))
        os.link(path, backup)
        return lambda: os.replace(backup, path)

    def _rename(self, source: Path, target: Path) -> None:
        old_source, old_target = self._backup(source), self._backup(target)
        self._undo += [(target.parent, old_target), (target.parent, old_source)]
        self._real["rename"](source, target)

    def _unlink(self, path: Path) -> None:
        self._undo.append((path.parent, self._backup(path)))
        self._real["unlink"](path)

    def lose_power(self, root: Path) -> None:
        for _, undo in reversed(self._undo):
            undo()
        for path in root.rglob("*"):
            if path.is_file() and (durable := self._unsynced_data.get(path.stat().st_ino)) is not None:
                os.truncate(path, (durable + path.stat().st_size) // 2)


def _damage(folder: Path) -> None:
    build(folder, FIRST)
    (folder / "weights/unet.safetensors").write_bytes(b"x" * 9000)


def _half_rebuilt(folder: Path) -> None:
    """A bundle whose rebuild was given up, with staged files and a journal."""
    build(folder, FIRST)
    with pytest.MonkeyPatch.context() as patch:
        Disk(22, folder.parent / "given-up-backups").install(patch)
        with pytest.raises(Crash):
            build(folder, SECOND)
    assert list(folder.rglob("*.lamp-new"))
    shutil.rmtree(folder.parent / "given-up-backups")


def _first(folder: Path) -> None:
    build(folder, FIRST)


def _second(folder: Path) -> None:
    build(folder, SECOND)


def _two_motions(folder: Path) -> None:
    build(folder, FIRST)
    add_motion(folder, "rain", b"rain")


def _better_motion(folder: Path) -> None:
    add_motion(folder, "horse_run", b"better")


def _load(folder: Path) -> dict[str, bytes] | None:
    """What a reader gets: every file of the bundle, or None where it is refused."""
    try:
        bundle = Bundle.open(folder)
    except BundleError:
        return None
    return {path: bundle.path_of(path).read_bytes() for path in sorted(bundle.manifest.files)}


Step = Callable[[Path], None]

SCENARIOS: dict[str, tuple[Step, Step, Step]] = {
    "first build": (lambda folder: None, _first, _first),
    "first build, then another": (lambda folder: None, _first, _second),
    "rebuild": (_first, _second, _second),
    "rebuild, then back": (_first, _second, _first),
    "repair": (_damage, _first, _first),
    "back from half a rebuild": (_half_rebuilt, _first, _first),
    "motion add": (_first, _two_motions, _two_motions),
    "motion replace": (_first, _better_motion, _better_motion),
    "motion replace over half a rebuild": (_half_rebuilt, _better_motion, _better_motion),
    "motion remove": (_two_motions, lambda folder: remove_motion(folder, "rain"), _first),
}
"""What is there, what crashes, and what is done afterwards."""


@pytest.mark.parametrize("power_loss", [False, True], ids=["killed", "power loss"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_crash_anywhere_is_resumed_to_the_same_bytes_and_never_loads_wrong(
    scenario: str, power_loss: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("lamp_trt.engine.bundle.reader._COMMIT_WAIT_S", 0.0)
    prepare, action, resume = SCENARIOS[scenario]
    start, done = tmp_path / "start", tmp_path / "done"
    start.mkdir()
    prepare(start)
    shutil.copytree(start, done)
    with monkeypatch.context() as patch:
        disk = Disk(None, tmp_path / "backups")
        disk.install(patch)
        action(done)
    valid = (None, _load(start), _load(done))
    assert valid[2] is not None
    resume(done)
    expected = tree(done)

    for crash_at in range(1, disk.calls + 1):
        folder, backups = tmp_path / f"bundle{crash_at}", tmp_path / f"backups{crash_at}"
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            crashing = Disk(crash_at, backups)
            crashing.install(patch)
            with pytest.raises(Crash):
                action(folder)
        if power_loss:
            crashing.lose_power(folder)
        assert _load(folder) in valid, crash_at
        resume(folder)
        assert tree(folder) == expected, crash_at
        assert _load(folder) is not None, crash_at
        shutil.rmtree(folder)
        shutil.rmtree(backups)
    print(f"{scenario}: {disk.calls} crashes survived")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_committed_survives_the_loss_of_power(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare, action, _ = SCENARIOS[scenario]
    folder = tmp_path / "bundle"
    folder.mkdir()
    prepare(folder)
    with monkeypatch.context() as patch:
        disk = Disk(None, tmp_path / "backups")
        disk.install(patch)
        action(folder)
    committed = _load(folder)
    assert committed is not None
    disk.lose_power(folder)
    assert _load(folder) == committed
