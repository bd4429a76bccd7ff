# SPDX-License-Identifier: Apache-2.0
"""Wheels to take to a machine without a network, for Python 3.12 on x86-64 Linux."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamp_trt.engine.errors import InputError

PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Wheel:
    name: str
    version: str
    sha256: str
    size_bytes: int
    file: str

    @property
    def line(self) -> str:
        return f"{self.name} {self.version} {self.sha256} {self.size_bytes} {self.file}"


WHEELS = (
    Wheel(
        "diffusers",
        "0.42.1",
        "9154faa704ce00e0b77f568e0d64786064368528aab5fc14eeea92f87d788014",
        6_355_908,
        "diffusers-0.42.1-py3-none-any.whl",
    ),
    Wheel(
        "cuda-core",
        "1.2.2",
        "0b299eee52edece08b77428cfc22b33b29be1bc69c42878d2e6114031eac17e6",
        6_610_599,
        "cuda_core-1.2.2-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    ),
)
"""diffusers has SDXL's modules and the VAEs'; a machine's cuda-core may be older than 1.0."""


def write_list(file: Path) -> None:
    """name, version, sha256, bytes and file name, one wheel a line."""
    file.write_text("".join(f"{wheel.line}\n" for wheel in WHEELS))


def fetch(folder: Path, run: Callable[[Sequence[str]], int] | None = None) -> None:
    """Download the wheels by pip, which checks the digests. InputError if one is not what it should be.

    run: a command → its exit code
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = folder / "hashes.txt"
    hashes.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in WHEELS))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--implementation", "cp", "--python-version", PYTHON]
    command += [word for name in _PLATFORMS for word in ("--platform", name)]
    command += ["--dest", str(folder), "--requirement", str(hashes)]
    code = (run or _run)(command)
    hashes.unlink()
    for wheel in WHEELS:
        path = folder / wheel.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wheel.sha256:
            raise InputError(f"{path} was not downloaded (pip's exit code is {code}), or is another file.")


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command).returncode
