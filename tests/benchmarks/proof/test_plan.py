# SPDX-License-Identifier: Apache-2.0
"""The plan for a machine that is lent: scripts that bash takes, limits that hold, no unasked download."""

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.benchmarks.proof.commands.command import main
from lamp_trt.benchmarks.proof.commands.parts import PARTS
from lamp_trt.benchmarks.proof.plan import wheels
from lamp_trt.benchmarks.proof.plan.schedule import MEASUREMENTS, schedule
from lamp_trt.engine.errors import InputError
from lamp_trt.export.candidates.registry import CANDIDATES, SETTINGS
from tests.doubles.gpu_machine import fake_program
from tests.system_tools import find

ROOT = Path(__file__).parents[3]
GIVEN = ["--minutes", "30", "--call-minutes", "10", "--max-files", "8", "--max-file-mib", "16"]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    assert main(["plan", *GIVEN, "--out", str(tmp_path / "plan")]) == 0
    return tmp_path / "plan"


def content(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return made


def test_half_an_hour_is_three_calls_that_bash_takes(plan: Path) -> None:
    assert sorted(path.name for path in plan.iterdir()) == ["1.sh", "2.sh", "3.sh", "plan.json", "wheels.txt"]
    for script in plan.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
        assert all(len(line) < 400 for line in script.read_text().splitlines())


def test_every_part_is_under_timeout_and_they_fit_together(plan: Path) -> None:
    made = content(plan)
    for call in made["calls"]:
        parts = call["parts"]
        assert (
            sum(part["limit_s"] + part["kill_after_s"] for part in parts)
            < call["sum_s"]
            <= call["limit_s"]
            == 600
        )
        text = (plan / call["script"]).read_text()
        for part in parts:
            assert f"timeout -k {part['kill_after_s']} {part['limit_s']} {part['command']}" in text
        commands = [line.split() for line in text.splitlines() if line.startswith("timeout")]
        outside = [int(words[2]) + int(words[3]) for words in commands if "prepare" not in words]
        assert sum(outside) + 45 <= 600  # 45: the wheels, below an if
    measured = [part["part"] for call in made["calls"] for part in call["parts"]]
    assert measured == [
        "kernels",
        "wait",
        "kernels",
        "unet",
        "profile",
        "candidates",
        "sdxl",
        "peers",
        "pipeline",
    ]
    assert made["left_out"] == ["hoists"]
    titles = [form.title for form in CANDIDATES] + [setting.title(True) for setting in SETTINGS]
    assert [row["form"] for row in made["candidates"]] == titles
    assert {row["result"] for row in made["candidates"]} == {"not measured"}
    assert made["detached"]["subjects"] == ["lamp_unet", "sdxl_unet", "whole"]


@pytest.mark.parametrize("minutes", [10, 12.5, 20, 30, 45, 60, 120])
@pytest.mark.parametrize("call_minutes", [8, 10, 15, 30])
def test_calls_never_sum_up_to_more_than_their_limit(minutes: float, call_minutes: float) -> None:
    if minutes < call_minutes:
        with pytest.raises(InputError, match=f"--minutes is {minutes:g}: give at least"):
            schedule(minutes, call_minutes)
        return
    made = schedule(minutes, call_minutes)
    assert len(made.calls) <= minutes / call_minutes
    for call in made.calls:
        assert call.sum_s <= 60 * call_minutes
        assert all(step.least <= step.limit_s <= step.most for step in call.steps)
    parts = [step.part for call in made.calls for step in call.steps]
    assert parts[:2] == ["kernels", "wait"]
    assert [*parts[2:], *made.left_out] == [step.part for step in MEASUREMENTS]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--call-minutes", "2"], "--call-minutes is 2: a call needs at least"),
        (["--call-minutes", "0"], "--minutes is 30: give at least"),
        (["--minutes", "5"], "--minutes is 5: give at least --call-minutes, 10"),
        (["--max-files", "0"], "--max-files is 0; give at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    changed: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *GIVEN, *changed, "--out", str(tmp_path / "plan")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


def test_a_shorter_plan_leaves_no_script_of_a_longer_one(plan: Path) -> None:
    assert main(["plan", *GIVEN, "--minutes", "20", "--out", str(plan)]) == 0
    assert [path.name for path in sorted(plan.glob("*.sh"))] == ["1.sh", "2.sh"]


# --- what is carried --------------------------------------------------------------------------------------


def test_the_wheels_are_listed_and_not_downloaded(plan: Path) -> None:
    lines = [line.split() for line in (plan / "wheels.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["diffusers", "0.42.1"], ["cuda-core", "1.2.2"]]
    for _, _, digest, size, file in lines:
        assert len(bytes.fromhex(digest)) == 32
        assert 6_000_000 < int(size) < 7_000_000
        assert file.endswith(".whl")
    assert not (plan / "wheels").exists()
    assert content(plan)["carried_bytes"]["wheels"] == sum(int(line[3]) for line in lines)


def test_the_size_of_the_tree_is_known_in_a_clone_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (ROOT / ".git").exists() and find("git"):
        assert main(["plan", "--out", str(tmp_path / "clone")]) == 0
        assert 1e6 < content(tmp_path / "clone")["carried_bytes"]["tree"] < 10e6
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["plan", "--out", str(tmp_path / "no-git")]) == 0
    assert content(tmp_path / "no-git")["carried_bytes"]["tree"] is None
    assert "tree of unknown size (no git clone)" in capsys.readouterr().out


def test_fetched_wheels_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"a wheel"
    one = wheels.Wheel("one", "1.0", hashlib.sha256(data).hexdigest(), len(data), "one-1.0-py3-none-any.whl")
    monkeypatch.setattr(wheels, "WHEELS", (one,))
    asked: list[Sequence[str]] = []

    def pip(written: bytes) -> Any:
        def run(command: Sequence[str]) -> int:
            asked.append(command)
            (tmp_path / one.file).write_bytes(written)
            return 0

        return run

    wheels.fetch(tmp_path, pip(data))
    assert [path.name for path in tmp_path.iterdir()] == [one.file]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(asked[0])
    with pytest.raises(InputError, match="or is another file"):
        wheels.fetch(tmp_path, pip(b"another"))


# --- the scripts, run -------------------------------------------------------------------------------------

PYTHON = """
echo "$@" >> "$PROOF_FOLDER/called.txt"
case "$*" in
  *"-m pip"*) exit 1;;
  *" report "*) exec {python} "$@";;
  *" prepare "*) sleep 0.2; exit 0;;
  *) echo "a traceback, say" >&2; exit 1;;
esac
"""


def test_the_scripts_run_to_their_end_whatever_fails(plan: Path, tmp_path: Path) -> None:
    """With a python3 whose every part fails, no GPU, and wheels that pip refuses."""
    import sys

    programs, work, out = tmp_path / "bin", tmp_path / "work", tmp_path / "out"
    work.mkdir()
    fake_program(programs, "python3", PYTHON.format(python=sys.executable))
    (plan / "wheels").mkdir()
    (plan / "wheels" / "x.whl").touch()
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "PROOF_FOLDER": str(work)}
    environment |= {"OUT": str(out)}
    root = Path(__file__).parents[3]
    for number in (1, 2, 3):
        done = subprocess.run(
            ["bash", plan / f"{number}.sh"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert "call ended after" in done.stdout
    called = (work / "called.txt").read_text()
    for part in ("kernels", "unet", "profile", "candidates", "sdxl", "peers", "pipeline"):
        assert f"lamp_trt.benchmarks.proof {part} " in called
    assert called.count("prepare --subject lamp_unet") == 3
    names = {path.name for path in out.iterdir()}
    assert names == {"report.md", "report.html", "results.json", "logs.tar.gz"}
    rows = json.loads((out / "results.json").read_text())
    assert {row["part"] for row in rows} == set(PARTS)
    assert {check["result"] for row in rows for check in row["checks"]} == {"not run"}
    assert "the part was not started, or left no report" in (out / "report.md").read_text()
