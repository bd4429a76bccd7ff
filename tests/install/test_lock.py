# SPDX-License-Identifier: Apache-2.0
"""The lock (constraints.txt, requirements-*.txt) and the script that installs it, without a network."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = ("requirements-ci.txt", "requirements-pypi.txt")
TORCH = tomllib.loads((ROOT / "install" / "torch-cpu.toml").read_text())
CUDA_BUILD_ONLY = {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"}


def pins(name: str) -> dict[str, str]:
    """{package: version} of a file of the lock."""
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "install" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_has_its_constraints_version_and_digests(name: str) -> None:
    constraints = pins("constraints.txt")
    text = (ROOT / name).read_text().replace(" \\\n    ", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(pins(name)) > 60
    for line in lines:
        assert re.search(r"^[a-z0-9-]+==\S+( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+$", line), line
    assert {package: version.removesuffix("+cpu") for package, version in pins(name).items()}.items() <= (
        constraints.items()
    )


def test_the_two_files_differ_in_torch_only() -> None:
    cpu, cuda = (pins(name) for name in LOCKED)
    assert cpu.pop("torch") == f"{TORCH['version']}+cpu"
    assert cuda.pop("torch") == TORCH["version"]
    assert cpu.items() <= cuda.items()
    assert cuda.keys() - cpu.keys() >= CUDA_BUILD_ONLY
    assert not cpu.keys() & CUDA_BUILD_ONLY


@pytest.mark.parametrize("python", ["cp311", "cp312", "cp313", "cp314"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_cpu_build_of_torch_has_a_digest(python: str, machine: str) -> None:
    digest = TORCH["sha256"][f"{python}-{python}-manylinux_2_28_{machine}"]
    assert f"--hash=sha256:{digest}" in (ROOT / "requirements-ci.txt").read_text()


@pytest.mark.parametrize("name", ["constraints.txt", *LOCKED, "install/torch-cpu.toml", "pyproject.toml"])
def test_only_public_indexes_are_named(name: str) -> None:
    text = (ROOT / name).read_text()
    assert set(re.findall(r"https?://([^/\s]+)", text)) <= {"pypi.org", "download.pytorch.org"}
    assert not re.search(r"file:|find-links|/opt/|/root/|/tmp/", text)


# --- the script ------------------------------------------------------------------------------------------


def test_older_pythons_can_read_the_script_as_far_as_its_message() -> None:
    ast.parse((ROOT / "install" / "environment.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 2), (3, 10, 12)])
def test_a_python_that_is_too_old_is_named(
    version: tuple[int, ...], environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr("platform.python_version", lambda: ".".join(map(str, version)))
    with pytest.raises(SystemExit, match=r"Python 3\.\d+\.\d+ is too old.*3\.11.*make PYTHON="):
        environment.main(str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_a_python_without_venv_is_told_what_to_install(
    module: str, environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r"no venv module.*apt-get install python3-venv"):
        environment.main(str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def test_make_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make, see apt-get install make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "CMakeLists.txt", *LOCKED):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "install", tmp_path / "install")
    command = ["make", "-C", str(tmp_path), "demo", "PYTHON=no-such-python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no no-such-python; lamp-trt needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


class Machine:
    """Stands in for pip and the network of a machine; `installs` are the pip commands that would install."""

    def __init__(self, *, find_links: bool, index: bool) -> None:
        self.find_links, self.index = find_links, index
        self.installs: list[tuple[str, ...]] = []

    def pip(self, python: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if "--dry-run" in arguments:
            return subprocess.CompletedProcess(arguments, 0 if self.find_links else 1)
        self.installs.append(arguments)
        return subprocess.CompletedProcess(arguments, 0)

    def urlopen(self, url: str, timeout: float) -> Any:
        assert 0 < timeout <= 10
        if not self.index:
            raise urllib.error.URLError("Name or service not known")
        return open("/dev/null", "rb")


def write_python(path: Path, shell: str) -> Path:
    """A program that stands in for the environment's Python when it is asked for torch's version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{shell}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("gpu", "find_links", "index", "lock", "said"),
    [
        (False, True, False, "requirements-ci.txt", "CPU build from pip's find-links: about 1"),
        (
            False,
            False,
            True,
            "requirements-ci.txt",
            "CPU build from https://download.pytorch.org/whl/cpu: ab",
        ),
        (False, False, False, "requirements-pypi.txt", r"cannot be reached .*from PyPI, with CUDA: about \d"),
        (True, True, True, "requirements-pypi.txt", r"has an NVIDIA GPU: .*with CUDA, about \d"),
    ],
)
def test_the_small_torch_is_taken_where_it_can_be_had_and_the_size_is_said(
    gpu: bool,
    find_links: bool,
    index: bool,
    lock: str,
    said: str,
    environment: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    machine = Machine(find_links=find_links, index=index)
    monkeypatch.setattr(environment, "has_gpu", lambda: gpu)
    monkeypatch.setattr(environment, "pip", machine.pip)
    monkeypatch.setattr("venv.create", lambda *_, **__: None)
    monkeypatch.setattr("urllib.request.urlopen", machine.urlopen)
    write_python(tmp_path / "venv" / "bin" / "python", "exit 1")
    environment.main(str(tmp_path / "venv"))
    assert re.search(said, capsys.readouterr().out)
    packages, itself, check = machine.installs
    assert packages[-1] == str(ROOT / lock)
    assert {"--require-hashes", "--no-deps"} <= set(packages)
    assert ("--extra-index-url" in packages) == (not gpu and not find_links and index)
    assert {"--no-deps", "--no-build-isolation", "-e"} <= set(itself)
    assert check == ("check",)


def test_a_cpu_torch_that_is_installed_is_kept(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = write_python(tmp_path / "python", f"echo torch=={TORCH['version']}+cpu")
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    assert environment.locked_packages(python, "auto") == ("requirements-ci.txt", [])


# --- system packages -------------------------------------------------------------------------------------


def test_system_packages_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "strace").write_text("#!/bin/sh\n")
    (tmp_path / "strace").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "install" / "system-packages.sh"), "strace"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_there_is_no_apt_the_missing_packages_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "install" / "system-packages.sh"), "strace", "g++"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "install with this system's own tool: strace g++" in done.stderr
