# SPDX-License-Identifier: Apache-2.0
"""The tests that need Ray or Triton's server, where those are not installed: in an environment of their own.

It holds what is missing beside the packages of this environment, comes from PyPI and is deleted afterwards.
"""

import os
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.install.pypi import FROM_PYPI, UV, uv_environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """needs: a module; requirements: of uv; tests: files or folders; fewest: tests that pass in them."""

    needs: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    fewest: int


RAY = Server(
    "ray",
    ("-c", "constraints.txt", "ray[serve]"),
    ("ray_pool", "test_a_thousand_jobs.py::test_on_ray"),
    10,
)
TRITON = Server(
    "pytriton",
    # Without our constraints: the server in the wheel was compiled for NumPy 1.
    ("nvidia-pytriton==0.7.0", "tritonclient[grpc]==2.73.0"),
    ("test_triton.py",),
    2,
)


@pytest.mark.slow
@pytest.mark.parametrize("server", [RAY, TRITON], ids=lambda server: server.needs)
def test_with_the_real_server(server: Server, tmp_path: Path) -> None:
    if find_spec(server.needs):
        pytest.skip(f"{server.needs} is installed here: its tests are in this run")
    python = environment_with(server.requirements, tmp_path / "venv")
    report = tmp_path / "report.xml"
    command = [str(python), "-m", "pytest", "-m", "slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"tests/serving/{name}" for name in server.tests]
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    inherited.pop("LAMP_TRT_GOLDEN", None)
    done = subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    suite = ET.parse(report).getroot()[0]
    assert suite.get("skipped") == "0", done.stdout[-2000:]
    assert int(suite.get("tests", 0)) >= server.fewest


def environment_with(requirements: tuple[str, ...], folder: Path) -> Path:
    """The Python of a new virtual environment with `requirements`, which also finds what this one has."""
    environment, python = uv_environment(), folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    command = [*UV, "install", *FROM_PYPI, "--python", str(python), *requirements]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (packages,) = folder.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "tests_environment.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python
