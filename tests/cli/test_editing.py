# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt edit`: the README's commands, and bad input at the command line."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lamp_trt.cli import main
from lamp_trt.runtime.media.image import encode_png
from tests.runtime.media.clips import moving_picture, write_clip

FRAMES = moving_picture(6, 64, 64)


@pytest.fixture
def folder(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the README's commands name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bundle").symlink_to(toy_bundle)
    write_clip(tmp_path / "clip.mp4", FRAMES)
    (tmp_path / "edited.png").write_bytes(encode_png(255 - FRAMES[0]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_commands_edit_and_repeat(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.split("\n### lamp-trt edit\n")[1].split("\n### ")[0]
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    lamp-trt ")]
    assert [command[0] for command in commands] == ["edit", "generate"]
    edit, again = commands
    assert main([*edit, "--steps=2", "--latents=clip.safetensors"]) == 0
    shown = capfd.readouterr()
    assert shown.out == "edited.mp4\n"
    assert "frames 0 to 3 of 6 are taken" in shown.err
    assert (folder / "clip.safetensors").is_file()
    assert main(again) == 0
    assert "this clip was inverted before" in capfd.readouterr().err
    assert (folder / "edited.mp4").read_bytes() == (folder / "again.mp4").read_bytes()
    sidecars = [json.loads((folder / f"{name}.mp4.json").read_text()) for name in ("edited", "again")]
    assert sidecars[0] == sidecars[1]
    assert (sidecars[0]["video"], sidecars[0]["start"], sidecars[0]["every"]) == (
        str(folder / "clip.mp4"),
        0,
        1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.mp4", "x"], "the video 'no.mp4' does not exist"),
        (["edited.png", "x"], "is not an mp4, mov, webm or GIF"),
        (["clip.mp4", "x", "--start=3"], "takes 3; this bundle's videos have 4"),
        (["clip.mp4", "x", "--latents=a.npy"], "does not end in .safetensors"),
        (["clip.mp4", "x", "--first-frame=no.png"], "no.png' does not exist"),
        (["clip.mp4", "x", "--out=./clip.mp4"], "would replace 'clip.mp4', which this run reads"),
        (["link.mp4", "x", "--out=clip.mp4"], "would replace 'link.mp4', which this run reads"),
        (["clip.mp4", "x", "--first-frame=frames/frame_000.png", "--out=frames"], "'frames' would replace"),
        (
            ["clip.mp4", "x", "--first-frame=a.first_frame.png", "--save-first-frame"],
            "'a.first_frame.png' would replace",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_nothing_written(
    folder: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "link.mp4").symlink_to("clip.mp4")
    (folder / "frames").mkdir()
    for name in ("frames/frame_000.png", "a.first_frame.png"):
        (folder / name).write_bytes(encode_png(FRAMES[0]))
    before = {path.name for path in folder.iterdir()}
    assert main(["edit", "--bundle=bundle", "--steps=1", "--out=a.gif", *arguments]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("lamp-trt edit: ")
    assert message in last
    assert {path.name for path in folder.iterdir()} - before <= {"cache"}


FULL = """
import resource, sys
from lamp_trt.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
raise SystemExit(main(sys.argv[1:]))
"""
"""Writes past 100 bytes of a file fail, as on a full disk."""


@pytest.mark.parametrize(
    ("options", "at_fault"), [(["--latents=a.safetensors"], "a.safetensors"), ([], "a.mp4")]
)
def test_on_a_full_disk_an_edit_leaves_nothing_and_ends_with_1(
    folder: Path, options: list[str], at_fault: str
) -> None:
    """Latents, cache, preview, video and sidecar, of which the given one is needed and too large."""
    before = {path.name for path in folder.iterdir()}
    command = ["edit", "clip.mp4", "x", "--bundle=bundle", "--steps=1", "--out=a.mp4", "--preview=p.webp"]
    done = subprocess.run([sys.executable, "-c", FULL, *command, *options], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "cannot be written: File too large." in last
    assert at_fault in last
    assert "Traceback" not in done.stderr
    assert {path.name for path in folder.iterdir()} - before <= {"cache"}
    assert not [path for path in (folder / "cache").rglob("*") if "tmp" in path.name]
