# SPDX-License-Identifier: Apache-2.0
"""Terminals, pipes and locales of all kinds: reporting never stops the work, and lost results are told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMANDS = ("build", "generate", "image", "inspect", "verify", "bench", "doctor", "toy", "edit", "serve")
STREAMS = {
    "usual": ("", "", 0),
    "stdout full": (">/dev/full", "", 1),
    "stdout closed": (">&-", "", 1),
    "stdout a pipe that nobody reads": ("| true", "", 1),
    "stderr full": ("", "2>/dev/full", 0),
    "stderr closed": ("", "2>&-", 0),
    "both full": (">/dev/full", "2>/dev/full", 1),
    "all closed": (">&-", "2>&- <&-", 1),
}
"""Redirections of stdout and stderr in a shell, and the exit code of a command that did its work."""


def shell(arguments: list[Any], out: str = "", err: str = "", **environment: str) -> Any:
    """`python ARGUMENTS` in bash with these redirections; the exit code is python's."""
    run = f'"$@" {err} {out}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", run, "bash", sys.executable, *arguments],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def first_frame(tmp_path: Path) -> Path:
    path = tmp_path / "first.png"
    cv2.imwrite(str(path), np.full((64, 64, 3), 90, np.uint8))
    return path


def generate(bundle: Path, first_frame: Path, *arguments: Any) -> list[Any]:
    fixed = ["-m", "lamp_trt", "generate", "--bundle", bundle, "--first-frame", first_frame, "--steps=1"]
    return [*fixed, "--num-threads=1", *arguments]


@pytest.mark.parametrize("streams", STREAMS)
def test_every_video_is_made_whatever_becomes_of_the_streams(
    streams: str, toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    out, err, code = STREAMS[streams]
    prompts = ["a horse", "馬が走る", "un café"]
    folder = tmp_path / "videos"
    done = shell(generate(toy_bundle, first_frame, *prompts, "--format=gif", "--out", folder), out, err)
    assert done.returncode == code, done.stderr
    assert len(list(folder.glob("*.gif"))) == len(list(folder.glob("*.gif.json"))) == 3
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert (b"the results could not be written to stdout: " in done.stderr) == (code == 1 and not err)


PRINTING = """
import importlib, logging, pathlib, sys
from lamp_trt import cli
from lamp_trt.engine.progress import progress
module, text, *arguments = sys.argv[1:]
def run(args):
    logging.getLogger("lamp_trt").warning("%s", text)
    for _ in progress(range(3), text): print(text, flush=True)
    print(text * 5000)
    sys.stderr.write(text)
    pathlib.Path("done").touch()
command = importlib.import_module(f"lamp_trt.commands.{module}")
command.run = command.list_motions = run
raise SystemExit(cli.main(arguments))
"""
"""Any command, reporting in every way instead of its work."""

LEAST_ARGUMENTS: dict[str, list[str]] = {
    "build": ["--out=x"], "generate": ["--bundle=x", "x"], "image": ["--bundle=x", "x"], "inspect": ["x"],
    "verify": ["x"], "bench": ["--bundle=x"], "doctor": [], "toy": ["x"],
    "edit": ["--bundle=x", "x", "y"], "serve": ["--bundle=x"],
}  # fmt: skip


@pytest.mark.parametrize("streams", ["stdout full", "all closed"])
@pytest.mark.parametrize("command", [*COMMANDS, "motion"])
def test_no_command_is_stopped_by_its_reports(command: str, streams: str, tmp_path: Path) -> None:
    arguments = [command, *LEAST_ARGUMENTS.get(command, ["list", "x"])]
    out, err, code = STREAMS[streams]
    program = f"import os; os.chdir({str(tmp_path)!r})\n{PRINTING}"
    assert shell(["-c", program, command, "plain", *arguments], out, err).returncode == code
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp932", "utf-8", "utf-16"])
def test_any_text_is_printed_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    text = "é 馬 \U0001f40e €"
    program = f"import os; os.chdir({str(tmp_path)!r})\n{PRINTING}"
    done = shell(["-c", program, "inspect", text, "inspect", "x"], PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "done").exists()
    expected = text.encode(encoding, "backslashreplace").decode(encoding)
    assert done.stdout.decode(encoding).splitlines()[:3] == [expected] * 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_file_name_that_is_no_text_is_printed_as_its_bytes(encoding: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xe9.mp4")
    program = f"import os; os.chdir({str(tmp_path)!r})\n{PRINTING}"
    done = shell(["-c", program, "inspect", name, "inspect", "x"], PYTHONIOENCODING=encoding)
    assert done.stdout.splitlines()[0] == b"\xff\xe9.mp4"


@pytest.mark.parametrize(
    ("option", "streams", "code"),
    [
        ("--help", "stdout full", 1),
        ("--version", "stdout closed", 1),
        ("--version", "stderr full", 0),
        ("--wrong", "stderr full", 2),
        ("--wrong", "all closed", 2),
    ],
)
def test_help_and_errors_keep_their_exit_codes(option: str, streams: str, code: int) -> None:
    out, err, _ = STREAMS[streams]
    assert shell(["-m", "lamp_trt", option], out, err).returncode == code


def test_a_prompt_that_this_locale_cannot_read_is_refused_before_any_work(
    toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    done = shell(generate(toy_bundle, first_frame, "a", "un café", "--out", folder), **C_LOCALE)
    assert done.returncode == 2
    assert b"is not all text" in done.stderr
    assert b"PYTHONUTF8=1" in done.stderr
    assert not folder.exists() or not list(folder.iterdir())
    for option in ("--negative-prompt=café", "--first-frame-prompt=café"):
        done = shell(generate(toy_bundle, first_frame, "a", option, "--out", tmp_path / "x.mp4"), **C_LOCALE)
        assert (done.returncode, b"is not all text" in done.stderr) == (2, True)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ""])
def test_paths_of_any_bytes_work_in_a_c_locale(
    suffix: str, toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    named = os.fsencode(tmp_path) + "/première".encode()
    os.rename(first_frame, named + b".png")
    out = named + b"\xff" + suffix.encode()
    arguments = generate(toy_bundle, named + b".png", "a", "--out", out)  # type: ignore[arg-type]
    done = shell(arguments, **C_LOCALE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == out + b"\n"
    assert os.path.exists(out)
    assert json.loads(Path(os.fsdecode(out + b".json")).read_text(encoding="utf-8"))["prompt"] == "a"


@pytest.mark.parametrize("locale", [C_LOCALE, {"PYTHONUTF8": "1"}], ids=["C", "UTF-8"])
def test_a_prompts_file_is_utf8_in_every_locale(
    locale: dict[str, str], toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("馬\nun café\n", encoding="utf-8")
    arguments = ["--prompts", tmp_path / "prompts.txt", "--format=gif", "--out", tmp_path / "videos"]
    done = shell(generate(toy_bundle, first_frame, *arguments), **locale)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "videos").glob("*.json"))
    assert [json.loads(path.read_text(encoding="utf-8"))["prompt"] for path in made] == ["馬", "un café"]


def test_a_program_without_stderr_makes_its_video(
    toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, lamp_trt; pipe = lamp_trt.load(sys.argv[1], num_threads=1)\n"
        "pipe('a', first_frame=sys.argv[2], num_inference_steps=1).save(sys.argv[3])"
    )
    done = shell(["-c", program, toy_bundle, first_frame, tmp_path / "clip.gif"], "", "2>&-")
    assert done.returncode == 0
    assert (tmp_path / "clip.gif.json").is_file()
