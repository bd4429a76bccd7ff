# SPDX-License-Identifier: Apache-2.0
"""Builds and motion commands killed, starved of disk, locked out or raced, on the real toy bundle."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lamp_trt
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.export.motions import add_motion, remove_motion
from tests.engine.bundle.test_crashes import Crash, Disk
from tests.fixtures.bundle_cases import tree
from tests.fixtures.torture import Budget, Tally
from tests.fixtures.toy import TOY_SIZE

pytestmark = pytest.mark.torture
CLI = [sys.executable, "-m", "lamp_trt"]


def build_command(toy: Path, out: Path) -> list[str]:
    size = [f"--{name.removeprefix('num_')}={value}" for name, value in TOY_SIZE.items()]
    motions = [f"--motion={name}={toy / 'motions' / name}" for name in ("horse_run", "rain")]
    return [*CLI, "build", "--quiet", "--out", str(out), "--sd", str(toy / "sd"), *motions, *size]


def loads(folder: Path) -> Bundle | None:
    """The bundle if it is whole, every byte read; None if it is refused."""
    try:
        return Bundle.open(folder, verify="full")
    except BundleError:
        return None


def test_a_killed_build_resumes_to_the_same_bytes(
    toy: Path, toy_bundle: Path, tmp_path: Path, budget: Budget, tally: Tally
) -> None:
    """Each kill comes later in the build; finished parts are kept, so that the kills reach all of it."""
    expected, out, rng = tree(toy_bundle), tmp_path / "bundle", random.Random(0)
    for _ in budget.rounds(20, 0.25):
        process = subprocess.Popen(
            build_command(toy, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(2.0, 12.0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was faster, so begin anew
            assert tree(out) == expected
            shutil.rmtree(out)
            continue
        tally("builds killed end to end", 1)
        assert loads(out) is None, "a bundle that was never committed was loaded"
    subprocess.run(build_command(toy, out), check=True, stdout=subprocess.DEVNULL)
    assert tree(out) == expected


def test_a_crash_anywhere_in_motion_add_and_remove_is_mended_by_the_same_command(
    toy: Path, toy_bundle: Path, tmp_path: Path, budget: Budget, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamp_trt.engine.bundle.reader._COMMIT_WAIT_S", 0.0)
    cache = DigestCache(tmp_path / "digests")
    two, one = toy_bundle, tmp_path / "one"
    shutil.copytree(two, one)
    remove_motion(one, "rain")
    other = tmp_path / "other"
    shutil.copytree(two, other)
    remove_motion(other, "horse_run", default="rain")
    scenarios: list[tuple[str, Path, Path, Callable[[Path], object]]] = [
        ("add", one, two, lambda folder: add_motion(folder, "rain", toy / "motions" / "rain", cache)),
        ("remove", two, one, lambda folder: remove_if_there(folder, "rain", None)),
        ("remove the default", two, other, lambda folder: remove_if_there(folder, "horse_run", "rain")),
    ]
    for name, start, end, command in scenarios:
        done = tmp_path / "done"
        shutil.copytree(start, done)
        with monkeypatch.context() as patch:
            disk = Disk(None, tmp_path / "backups")
            disk.install(patch)
            command(done)
        assert tree(done) == tree(end), name
        points = list(range(1, disk.calls + 1))
        random.Random(0).shuffle(points)
        for _, (crash_at, power_loss) in zip(
            budget.rounds(2 * len(points), 0.05), itertools.product(points, (False, True)), strict=False
        ):
            crash(start, end, command, crash_at, power_loss, tmp_path / "crashed", monkeypatch)
            tally("crashes of motion commands survived", 1)
        shutil.rmtree(done)
        shutil.rmtree(tmp_path / "backups")


def remove_if_there(folder: Path, motion: str, default: str | None) -> None:
    """What a user does after a crash of `motion remove`: do it again, and take "holds no motion" for done."""
    try:
        remove_motion(folder, motion, default)
    except InputError as error:
        if "holds no motion" not in str(error):
            raise


def crash(
    start: Path,
    end: Path,
    command: Callable[[Path], object],
    crash_at: int,
    power_loss: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(start, folder)
    with monkeypatch.context() as patch:
        disk = Disk(crash_at, folder.with_name("crash-backups"))
        disk.install(patch)
        with pytest.raises(Crash):
            command(folder)
    if power_loss:
        disk.lose_power(folder)
    bundle = loads(folder)
    manifests = [(path / "bundle.json").read_bytes() for path in (start, end)]
    assert bundle is None or (folder / "bundle.json").read_bytes() in manifests, crash_at
    command(folder)
    assert tree(folder) == tree(end), crash_at
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("crash-backups"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """small_disk("size=4m") mounts a file system of that size; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kibibytes", [100, 700, 2500, 4500, 5500, 6000])
def test_a_full_disk_ends_a_build_that_then_resumes(
    kibibytes: int, toy: Path, toy_bundle: Path, small_disk: Callable[[str], Path], tally: Tally
) -> None:
    disk = small_disk(f"size={kibibytes}k")
    out = disk / "bundle"
    done = subprocess.run(build_command(toy, out), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "are free" in done.stderr
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    assert not list(disk.rglob("*.lamp-tmp"))
    assert loads(out) is None
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    subprocess.run(build_command(toy, out), check=True, stdout=subprocess.DEVNULL)
    assert tree(out) == tree(toy_bundle)
    tally("full disks survived", 1)


def test_a_bundle_on_a_read_only_disk_makes_videos_and_refuses_changes(
    toy: Path, toy_bundle: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=40m")
    bundle = disk / "copied" / "bundle"
    shutil.copytree(toy_bundle, bundle)
    bundle.rename(disk / "moved")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    moved = disk / "moved"
    assert Bundle.open(moved, verify="full").digest == Bundle.open(toy_bundle).digest
    assert lamp_trt.load(moved, num_threads=1).encode_prompt("a horse").shape[0] == 2
    for command in (
        lambda: add_motion(moved, "again", toy / "motions" / "rain"),
        lambda: remove_motion(moved, "rain"),
    ):
        with pytest.raises(BundleError, match=r"cannot (write|use).*Read-only file system"):
            command()
    nothing_to_do = build_command(toy, moved)
    done = subprocess.run(nothing_to_do, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*nothing_to_do, "--precision=fp16"], capture_output=True, text=True)
    assert (done.returncode, "Read-only file system" in done.stderr) == (1, True), done.stderr


READER = """
import sys, time
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.bundle.weights import read_weight_file
end, opened = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    try:
        bundle = Bundle.open(sys.argv[1], verify="full")
        for motion in bundle.manifest.motions:
            read_weight_file(bundle.motion_path(motion))
        bundle.check_unchanged()
    except (BundleError, FileNotFoundError) as error:
        assert any(word in str(error) for word in ("replaced", "changed while", "No such file", "is missing"))
        continue
    opened += 1
print(opened)
"""


def test_two_writers_and_three_readers_at_once_corrupt_nothing(
    toy: Path, toy_bundle: Path, tmp_path: Path, tally: Tally
) -> None:
    bundle, seconds = tmp_path / "bundle", 40
    shutil.copytree(toy_bundle, bundle)
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(bundle), str(seconds)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    writer = (
        "import sys, time, pathlib; from lamp_trt.export.motions import add_motion, remove_motion\n"
        "bundle, name, folder, end = *sys.argv[1:4], time.monotonic() + float(sys.argv[4])\n"
        "bundle, changes = pathlib.Path(bundle), 0\n"
        "while time.monotonic() < end:\n"
        "    add_motion(bundle, name, pathlib.Path(folder)); remove_motion(bundle, name); changes += 2\n"
        "print(changes)"
    )
    folder = str(toy / "motions" / "rain")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", writer, str(bundle), name, folder, str(seconds)], stdout=subprocess.PIPE
        )
        for name in ("first", "second")
    ]
    outputs = [process.communicate()[0] for process in (*readers, *writers)]
    assert [process.returncode for process in (*readers, *writers)] == [0] * 5
    opened, changed = sum(map(int, outputs[:3])), sum(map(int, outputs[3:]))
    tally("openings by three readers while two writers changed the bundle", opened)
    tally("changes by two writers at once", changed)
    assert opened > 0
    assert changed > 0
    assert tree(bundle) == tree(toy_bundle)


def test_two_builds_at_once_make_one_bundle_and_the_second_says_that_it_waits(
    toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    builds = [
        subprocess.Popen(
            build_command(toy, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], errors
    assert sum("waiting for another lamp-trt command" in text for text in errors) == 1
    assert tree(out) == tree(toy_bundle)


def test_a_clock_that_goes_backwards_between_builds_changes_nothing(
    toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """Files from the future, as after a clock was set back by ten years."""
    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle, bundle)
    future = time.time() + 10 * 365 * 86400
    for path in bundle.rglob("*"):
        os.utime(path, (future, future))
    assert Bundle.open(bundle).digest == Bundle.open(toy_bundle).digest
    before = tree(bundle)
    subprocess.run(build_command(toy, bundle), check=True, stdout=subprocess.DEVNULL)
    assert tree(bundle) == before
