# SPDX-License-Identifier: Apache-2.0
"""The rules of tests/fixtures/shared.py: each folder is made once, and a test that writes into one fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.shared import SharedFolders
from tests.golden.test_golden_rules import TWO_WORKERS

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
pytest_plugins = ["tests.fixtures.shared"]

@pytest.fixture(scope="session")
def bundle(shared_folders):
    def make(folder):
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "unet").write_text("1 2 3")
        with open({log!r}, "a") as log:
            print("made", file=log)
    return shared_folders.get("bundle", make)
"""
READS = """
import os, shutil

def test_reads(bundle, tmp_path):
    assert (bundle / "weights" / "unet").read_text() == "1 2 3"
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "weights" / "unet").write_text("")
"""
CHANGES = """
import os

def test_overwritten(bundle):
    (bundle / "weights" / "unet").write_text("3 2 1")

def test_written_back(bundle):
    (bundle / "weights" / "unet").write_text((bundle / "weights" / "unet").read_text())

def test_added(bundle):
    (bundle / "weights" / "vae").write_text("")

def test_linked(bundle, tmp_path):
    os.link(bundle / "weights" / "unet", tmp_path / "unet")

def test_locked(bundle):
    (bundle / "weights").chmod(0o500)
    (bundle / "weights").chmod(0o700)

def test_removed(bundle):
    (bundle / "weights" / "unet").unlink()

def test_only_read_afterwards(bundle):
    assert (bundle / "weights").is_dir()
"""


def run(folder: Path, tests: dict[str, str], workers: int) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST.format(log=str(folder / "log")))
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(text)
    plugins = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": plugins, "COLUMNS": "300"}
    environment.pop("LAMP_TRT_SHARED_FOLDERS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", f"--basetemp={folder / 'temporary'}",
         *(["-n2", "--dist=loadfile"] if workers else []), str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [0, TWO_WORKERS])
def test_a_folder_is_made_once_for_all_workers(workers: int, tmp_path: Path) -> None:
    code, output = run(tmp_path, {"one": READS, "two": READS}, workers)
    assert code == 0, output
    assert "2 passed" in output
    assert ("[gw1]" in output) is bool(workers)
    assert (tmp_path / "log").read_text() == "made\n"


def test_each_test_that_changes_one_fails_and_the_next_is_not_blamed(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"all": CHANGES}, workers=0)
    assert code == 1
    assert "7 passed, 6 errors" in output
    for change in ("overwritten", "written_back", "added", "linked", "locked", "removed"):
        assert f"ERROR test_all.py::test_{change} - Failed: bundle, which tests share, changed" in output


def test_a_folder_that_could_not_be_made_is_begun_again(tmp_path: Path) -> None:
    shared = SharedFolders(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "rest").mkdir(parents=True)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        shared.get("bundle", fail)
    assert list(shared.get("bundle", Path.mkdir).iterdir()) == []
    assert shared.changed("bundle") == []
