# SPDX-License-Identifier: Apache-2.0
"""The comparison of revisions: no difference escapes it, and each that is allowed is announced."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.revisions.__main__ import print_report
from tests.revisions.allowed import ALLOWED, Allowed, expected, sort_out
from tests.revisions.compare import Difference, folder_differences
from tests.revisions.revision import ROOT, commit_of, extract, git, python_of, run_python

LATENTS = np.linspace(-1, 1, 8, dtype=np.float32)
SIDECAR = {"seed": 3, "guidance_scale": 12.5, "histogram": None, "injected": [], "scheduler": {"beta": 0.1}}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same files."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "deep").mkdir(parents=True)
    (old / "deep" / "clip.mp4").write_bytes(b"abc")
    (old / "clip.json").write_text(json.dumps(SIDECAR))
    np.savez(old / "clip.npz", frames=np.zeros((2, 3), np.uint8), latents=LATENTS)
    shutil.copytree(old, new)
    return old, new


def found(folders: tuple[Path, Path]) -> dict[str, str]:
    return {difference.where: difference.what for difference in folder_differences(*folders)}


def test_equal_folders_have_no_difference(folders: tuple[Path, Path]) -> None:
    assert found(folders) == {}


@pytest.mark.parametrize(
    ("content", "what"), [(b"abd", "1 of 3 bytes differ"), (b"abcd", "3 bytes before, 4 after")]
)
def test_bytes_are_compared(folders: tuple[Path, Path], content: bytes, what: str) -> None:
    (folders[1] / "deep" / "clip.mp4").write_bytes(content)
    assert found(folders) == {"deep/clip.mp4": what}


def test_files_of_one_side_are_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "gone").touch()
    (folders[1] / "come.json").touch()
    assert found(folders) == {"gone": "only before", "come.json": "only after"}


def changed_bit(latents: np.ndarray) -> np.ndarray:
    bits = latents.copy().view(np.uint32)
    bits[2] ^= 1
    return bits.view(np.float32)


@pytest.mark.parametrize(
    ("latents", "what"),
    [
        (changed_bit(LATENTS), r"1 of 8 values differ, by [2-6]\.\d*e-08 at most"),
        (np.where(LATENTS > 0.9, np.nan, LATENTS).astype(np.float32), "1 of 8 values differ, by nan at most"),
        (LATENTS.astype(np.float64), r"float32 \(8,\) before, float64 \(8,\) after"),
        (LATENTS[None], r"float32 \(8,\) before, float32 \(1, 8\) after"),
    ],
)
def test_arrays_are_compared_bit_by_bit(folders: tuple[Path, Path], latents: np.ndarray, what: str) -> None:
    np.savez(folders[1] / "clip.npz", frames=np.zeros((2, 3), np.uint8), latents=latents)
    assert [*found(folders)] == ["clip.npz:latents"]
    assert re.fullmatch(what, found(folders)["clip.npz:latents"])


def test_a_zero_that_changes_its_sign_is_a_difference(folders: tuple[Path, Path]) -> None:
    for folder, zero in zip(folders, (0.0, -0.0), strict=True):
        np.savez(folder / "clip.npz", latents=np.array([zero]))
    assert found(folders) == {"clip.npz:latents": "0 of 1 values differ, by 0 at most"}


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"seed": 4}, {"clip.json:seed": "3 before, 4 after"}),
        ({"seed": 3.0}, {"clip.json:seed": "3 before, 3.0 after"}),
        ({"histogram": False}, {"clip.json:histogram": "null before, false after"}),
        ({"fps": 8}, {"clip.json:fps": "only after"}),
        ({"scheduler": {"beta": 0.2}}, {"clip.json:scheduler.beta": "0.1 before, 0.2 after"}),
        ({"scheduler": {}}, {"clip.json:scheduler": "only after", "clip.json:scheduler.beta": "only before"}),
        ({"injected": ["noise"]}, {"clip.json:injected": '[] before, ["noise"] after'}),
    ],
)
def test_json_is_compared_key_by_key(
    folders: tuple[Path, Path], change: dict[str, Any], differences: dict[str, str]
) -> None:
    (folders[1] / "clip.json").write_text(json.dumps(SIDECAR | change))
    assert found(folders) == differences


def test_the_order_of_keys_is_a_difference(folders: tuple[Path, Path]) -> None:
    (folders[1] / "clip.json").write_text(json.dumps(dict(reversed(SIDECAR.items()))))
    assert found(folders) == {"clip.json": "the same values in another order or form"}


# --- the list ---------------------------------------------------------------------------------------------

ONE = Allowed("videos/*:order", "in another order", "they are sorted")
TWO = Allowed("videos/*", "nothing but frames", "of the decoder")


@pytest.mark.parametrize("entry", ALLOWED, ids=lambda entry: entry.where)
def test_the_changelog_has_the_words_of_every_entry(entry: Allowed) -> None:
    assert expected([entry], "", (ROOT / "CHANGELOG.md").read_text()) == [entry]


def test_an_entry_counts_between_revisions_of_which_the_later_announces_it() -> None:
    after = "- Keys are\n  in another\n  order."
    assert expected([ONE, TWO], "", after) == [ONE]
    assert expected([ONE, TWO], after, after) == []
    assert expected([ONE, TWO], after, "") == []


@pytest.mark.parametrize(
    ("where", "entries", "good", "line"),
    [
        (["videos/a.json:order"], [ONE], True, "allowed   videos/*:order: they are sorted"),
        (
            ["videos/a.json:order", "videos/b.npz"],
            [ONE, TWO],
            True,
            "2 differences allowed by 2 entries, 0 not",
        ),
        (["videos/b.npz"], [ONE], False, "DIFFERENT videos/b.npz: x"),
        (["toy/a.bin"], [], False, "DIFFERENT toy/a.bin: x"),
        (
            [],
            [ONE],
            False,
            "STALE     videos/*:order: allowed, but did not occur. CHANGELOG: in another order",
        ),
        (["videos/a.json:order"], [TWO, ONE], False, "STALE     videos/*:order"),
        ([], [], True, "0 differences allowed by 0 entries, 0 not allowed, 0 stale entries"),
    ],
)
def test_what_is_not_allowed_and_what_did_not_occur_is_reported(
    where: list[str], entries: list[Allowed], good: bool, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_report(*sort_out([Difference(each, "x") for each in where], entries)) == good
    assert line in capsys.readouterr().out


# --- revisions --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone() -> None:
    try:
        git("rev-parse", "HEAD")
    except SystemExit as error:
        pytest.skip(str(error))


def test_a_revision_runs_on_its_own_package(clone: None, tmp_path: Path) -> None:
    """Also in a child process, and although this interpreter has another one installed."""
    source = extract(commit_of("HEAD"), tmp_path / "source")
    python = python_of(source, tmp_path / "venv")
    code = (
        "import subprocess, sys, pathlib, numpy, lamp_trt;"
        "pathlib.Path('found').open('a').write(lamp_trt.__file__ + '\\n');"
        "sys.argv[1:] and subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    run_python(python, "-c", code, code, cwd=tmp_path, cache=tmp_path / "cache")
    expected_path = str(source / "src" / "lamp_trt" / "__init__.py")
    assert (tmp_path / "found").read_text().splitlines() == [expected_path] * 2
    with pytest.raises(SystemExit, match=r"(?s)ended with 1:.*no_such_module"):
        run_python(python, "-c", "import no_such_module", cwd=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("revision", ["no-such-revision", "--help", "HEAD:engine"])
def test_what_is_no_revision_is_refused(clone: None, revision: str) -> None:
    command = [sys.executable, "-m", "tests.revisions", "--", revision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"there is no revision {revision!r}\n"
