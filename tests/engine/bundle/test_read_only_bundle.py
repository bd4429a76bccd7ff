# SPDX-License-Identifier: Apache-2.0
"""A bundle that cannot be written: an image of a container, another user's folder, a read-only mount."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamp_trt.engine.bundle import writer as bundle_writer
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.unchanged import write_if_needed
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.export.build import build_bundle
from lamp_trt.export.motions import add_motion, remove_motion
from tests.fixtures.bundle_cases import FIRST, SECOND, build, key_of, manifest_of, tree
from tests.fixtures.toy import TOY_SIZE, toy_options

_COMMANDS = """
import sys
from lamp_trt.cli import main
bundle, toy, cache = sys.argv[1:]
size = "--height {height} --width {width} --frames {num_frames}"
motions = [f"--motion={{name}}={{toy}}/motions/{{name}}" for name in ("horse_run", "rain")]
made = ["build", "--sd", f"{{toy}}/sd", *motions, "--out", bundle, *size.split()]
codes = [
    main(["inspect", bundle]),
    main(["inspect", bundle, "--verify-files"]),
    main(["motion", "list", bundle]),
    main(made),
    main(["motion", "add", bundle, f"rain={{toy}}/motions/rain"]),
    main(["motion", "add", bundle, f"new={{toy}}/motions/rain"]),
    main(["motion", "remove", bundle, "rain"]),
    main([*made, "--height", "32", "--width", "32"]),
]
print("exit codes", *codes)
"""


def without_write(folder: Path, other: Path) -> list[str]:
    """What a command begins with to see both folders read-only; skips where that cannot be had."""
    if os.geteuid() != 0:
        for path in (folder, *folder.rglob("*"), other):
            path.chmod(path.stat().st_mode & 0o555)
        return []
    script = 'mount --bind -o ro "$0" "$0" && mount --bind -o ro "$1" "$1" && shift && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(folder), str(other)]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("root can write everywhere, and this machine lets it mount nothing (unshare -m)")
    return prefix


def test_what_needs_no_writing_works_on_a_read_only_bundle(
    toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """With a cache folder that is read-only too."""
    bundle, cache = tmp_path / "bundle", tmp_path / "cache"
    shutil.copytree(toy_bundle, bundle)
    (bundle / ".lock").unlink(missing_ok=True)
    cache.mkdir()
    before = tree(bundle)
    command = [sys.executable, "-c", _COMMANDS.format(**TOY_SIZE), str(bundle), str(toy), str(cache)]
    done = subprocess.run(
        [*without_write(bundle, cache), *command],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["exit codes 0 0 0 0 0 1 1 1"], done.stderr
    refused = [line for line in done.stderr.splitlines() if f"cannot write to {bundle}" in line]
    assert len(refused) == 3
    assert all(f"cp -rL {bundle} COPY" in line and "--out" not in line for line in refused)
    assert tree(bundle) == before
    assert not (bundle / ".lock").exists()


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BundleError("the lock was taken")

    monkeypatch.setattr(bundle_writer, "_locked", refuse)


@pytest.mark.usefixtures("no_lock")
def test_a_build_and_a_motion_that_are_there_take_no_lock(toy: Path, toy_bundle: Path) -> None:
    before = tree(toy_bundle)
    report = build_bundle(toy_bundle, toy_options(toy))
    assert {file.seconds for file in report.files} == {None}
    assert add_motion(toy_bundle, "rain", toy / "motions/rain").digest == report.digest
    assert tree(toy_bundle) == before
    with pytest.raises(BundleError, match="the lock was taken"):
        add_motion(toy_bundle, "new", toy / "motions/rain")
    with pytest.raises(BundleError, match="the lock was taken"):
        build_bundle(toy_bundle, toy_options(toy, height=32, width=32))
    with pytest.raises(BundleError, match="the lock was taken"):
        remove_motion(toy_bundle, "rain")
    with pytest.raises(InputError, match="holds no motion 'none'; known: horse_run, rain"):
        remove_motion(toy_bundle, "none")
    with pytest.raises(InputError, match="Name another with --default"):
        remove_motion(toy_bundle, "horse_run")
    assert tree(toy_bundle) == before


def complete(contents: dict[str, bytes]) -> Callable[[BundleWriter], str]:
    """A build of `contents`, as `write_if_needed` takes it."""

    def work(writer: BundleWriter) -> str:
        for relative, data in contents.items():
            if not writer.have(relative, key_of(data)):
                with writer.create(relative, key_of(data)) as file:
                    file.write(data)
        return writer.commit(manifest_of(writer.files))

    return work


def test_an_interrupted_bundle_is_finished_and_another_one_is_made(tmp_path: Path) -> None:
    """Whatever differs from what is there takes the writer's way."""
    folder, cache = tmp_path / "bundle", DigestCache(tmp_path / "cache")
    build(folder, FIRST)
    digest = write_if_needed(folder, complete(FIRST), cache)
    (folder / "build.journal").write_bytes(b"torn")
    assert write_if_needed(folder, complete(FIRST), cache) == digest
    assert not (folder / "build.journal").exists()
    (folder / "weights/unet.safetensors").write_bytes(b"x" * 9000)
    assert write_if_needed(folder, complete(FIRST), cache) == digest
    assert (folder / "weights/unet.safetensors").read_bytes() == FIRST["weights/unet.safetensors"]
    assert write_if_needed(folder, complete(SECOND), cache) != digest
    build(tmp_path / "fresh", SECOND)
    assert tree(folder) == tree(tmp_path / "fresh")
