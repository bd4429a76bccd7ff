# SPDX-License-Identifier: Apache-2.0
"""Folders of other users, a deleted working directory, names that are no text: a sentence, no traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lamp_trt
from lamp_trt.child import run_python
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.files.links import utf8_path
from lamp_trt.export.checkpoints.tensor_files import TensorReader

COMMANDS = """
import shlex, sys
from lamp_trt.cli import main
for line in sys.argv[1:]:
    print("\\n>", line, flush=True)
    try:
        code = main(shlex.split(line))
    except SystemExit as stop:
        code = stop.code
    print("exit", code, flush=True)
"""


def codes(lines: list[str], cwd: Path, *prefix: str) -> tuple[list[int], str]:
    """The exit codes of commands, one after the other in a process of its own, and all that they printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", COMMANDS, *lines],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": "/root", "OMP_NUM_THREADS": "1"},
        text=True,
    )
    ends = [line for line in done.stdout.splitlines() if line.startswith("exit ")]
    return [int(line.removeprefix("exit ")) for line in ends], done.stdout


@pytest.fixture
def others(toy_bundle: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders of root, and the words by which a command runs as another user, who may not enter some."""
    prefix = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("only root can become another user, by setpriv: make system-packages")
    if subprocess.run([*prefix, sys.executable, "-c", "import lamp_trt"], capture_output=True).returncode:
        pytest.skip("another user cannot read the code")
    folder = Path("/tmp", f"lamp-trt-others-{os.getpid()}")
    folder.mkdir(mode=0o755)
    for name in ("open", "closed", "weights", "parent/inside"):
        shutil.copytree(toy_bundle, folder / name)
    (folder / "link").symlink_to("parent/inside")
    for name in ("closed", "weights/weights", "parent"):
        (folder / name).chmod(0o700)
    yield folder, prefix
    shutil.rmtree(folder)


def test_what_another_user_closed_is_named(others: tuple[Path, list[str]]) -> None:
    folder, prefix = others
    bundles = ("closed", "weights", "parent/inside", "link")
    lines = [
        *(f"{command} {name}" for name in bundles for command in ("inspect", "motion list")),
        *(f"generate a --bundle {name} --out /tmp/x.gif" for name in bundles),
        "generate a --bundle open --first-frame parent/x.png --out x.gif",
        "generate a --bundle open --engine-dir parent/engines --out x.gif",
        "generate --prompts parent/prompts.txt --bundle open",
        "generate --from parent/x.json --bundle open",
        "build --sd parent/sd --out /tmp/none",
        "build --sdxl closed --out /tmp/none",
        "build --motion a=parent/x --out parent/new",
        "motion add parent/inside x=open",
        "motion remove closed rain",
        "verify open --sd parent/sd",
        "bench --bundle parent/inside",
        "doctor --folder parent/new",
        "toy parent/toy",
    ]
    found, printed = codes(lines, folder, *prefix)
    assert len(found) == len(lines)
    assert set(found) <= {1, 2}, printed
    assert "Traceback" not in printed
    assert printed.count("may not enter it or a folder above it") >= 16, printed
    assert printed.count("Permission denied). Make it readable (chmod -R a+rX)") == 3
    assert "does not exist" not in printed


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "x"), PermissionError(1, "no")])
def test_a_refusal_of_the_system_is_a_message(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lamp_trt.cli import main
    from lamp_trt.commands import inspect

    def refused(_: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "run", refused)
    assert main(["inspect", "x"]) == 2
    assert f"the system refused a file{' ' * bool(error.filename)}" in capsys.readouterr().err


def test_a_working_directory_that_was_deleted_is_named(toy_bundle: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    lines = [
        "inspect b",
        "motion list b",
        "doctor",
        "generate a --bundle b",
        "toy t",
        f"inspect {toy_bundle}",
    ]
    prefix = ("sh", "-c", f'rmdir "{gone}" && exec "$@"', "sh")
    found, printed = codes(lines, gone, *prefix)
    assert found == [2, 2, 2, 2, 2, 0], printed
    assert printed.count("relative to the working directory, which was deleted") == 5
    assert "Traceback" not in printed


# --- names that are no UTF-8 -----------------------------------------------------------------------------

NO_TEXT = os.fsdecode(b"\xff\xe9")


def frames(bundle: Path) -> np.ndarray:
    pipe = lamp_trt.load(bundle, num_threads=1)
    return pipe("a", first_frame=np.full((64, 64, 3), 90, np.uint8), num_inference_steps=1).frames


def test_a_bundle_in_a_folder_that_is_not_named_in_utf8_makes_the_same_video(
    toy_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_bundle, tmp_path / NO_TEXT)
    np.testing.assert_array_equal(frames(tmp_path / NO_TEXT), frames(toy_bundle))


def test_weights_that_a_store_does_not_name_in_utf8_are_refused(toy_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    weights = tmp_path / "bundle/weights/unet.safetensors"
    weights.rename(tmp_path / NO_TEXT)
    weights.symlink_to(tmp_path / NO_TEXT)
    with pytest.raises(InputError, match=r"is not named in UTF-8.*rename it"):
        frames(tmp_path / "bundle")


def test_a_checkpoint_that_is_not_named_in_utf8_is_refused(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "sd/vae", tmp_path / NO_TEXT)
    with pytest.raises(InputError, match=r"is not named in UTF-8.*rename it"):
        TensorReader(tuple((tmp_path / NO_TEXT).glob("*.safetensors")))


def test_utf8_is_what_the_bytes_are(tmp_path: Path) -> None:
    assert utf8_path(tmp_path / "馬é") == str(tmp_path / "馬é")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import sys; from lamp_trt.engine.files.links import utf8_path; print(ascii(utf8_path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "é"], env={**os.environ, **locale}, capture_output=True, text=True
    )
    assert done.stdout == "'\\xe9'\n", done.stderr


def test_a_name_that_only_the_locale_lacks_has_the_locale_as_its_remedy(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lamp_trt.engine.bundle.paths import possible_path\n"
        "from lamp_trt.runtime.media.video import check_destination\n"
        "for ask in (possible_path, lambda p: check_destination(p, 64, 64)):\n"
        "    for name in ('\\u99ac.gif', '\\ud800.gif'):\n"
        "        try: ask(name)\n"
        "        except ValueError as error: print(ascii(str(error)))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **locale}, capture_output=True, text=True
    )
    assert ["PYTHONUTF8=1" in line for line in done.stdout.splitlines()] == [True, False] * 2, done.stderr
    assert done.stdout.count("leave out what is escaped in it") == 2


def test_a_file_of_a_bundle_instead_of_its_folder_is_told(toy_bundle: Path) -> None:
    with pytest.raises(
        BundleError, match=f"bundle.json is a file, and a bundle is a folder: give {toy_bundle} "
    ):
        Bundle.open(toy_bundle / "bundle.json")


# --- Python in a process of its own ----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp1252"])
def test_a_child_is_understood_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run_python("-c", "import sys; print('é 馬 \\udcff'); print('€', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("é 馬 \\udcff\n", "€\n")


def test_a_child_reports_nothing_where_the_environment_was_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert run_python("-c", code).stdout == "1\n"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert run_python("-c", code).stdout == "0\n"
