# SPDX-License-Identifier: Apache-2.0
"""Every extra resolves from PyPI alone, on each Python and processor: metadata only, nothing is installed.

A resolution of several extras together holds for each of them alone too, so what may go together is resolved
together. Only wheels count, except for NVIDIA's packages that PyPI has as source archives only.
"""

import re
import subprocess
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from tests.install.pypi import FROM_PYPI, UV, uv_environment

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_35")
"""glibc 2.28 and newer, as torch; on aarch64 TensorRT-RTX needs 2.35."""

EXTRAS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
SOURCE_ONLY = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-cu13", "tensorrt-cu13-libs")
NOT_FROM_PYPI_ALONE = "tensorrt"
"""Installing it fetches libraries from NVIDIA's index. PyPI has the metadata of its newer versions only."""

Resolve = Callable[..., str]


@pytest.fixture(scope="module")
def resolve() -> Resolve:
    """resolve(extras, python, platform, *options) gives uv's pins, or fails with uv's message."""
    environment = uv_environment()

    def run(extras: tuple[str, ...], python: str, platform: str, *options: str) -> str:
        command = [*UV, "compile", *FROM_PYPI, "--no-header", "--no-annotate", "--python-version", python]
        command += ["--python-platform", platform, "--only-binary", ":all:"]
        if {"rtx", "tensorrt"} & set(extras):
            command += [word for name in SOURCE_ONLY for word in ("--no-binary", name)]
        command += [*(f"--extra={extra}" for extra in extras), *options, str(ROOT / "pyproject.toml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{','.join(extras)} on {python}, {platform}: {done.stderr[-2000:]}"
        return done.stdout

    return run


def documented_combinations() -> set[tuple[str, ...]]:
    """The extras of each `pip install` in the documents."""
    texts = [path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    found = re.findall(r"pip install [^\n`]*?\[([a-z,]+)\]", "\n".join(texts))
    return {tuple(group.split(",")) for group in found if set(group.split(",")) <= set(EXTRAS)}


def in_parallel(resolve: Resolve, cases: list[tuple[object, ...]]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda case: resolve(*case), cases))


def test_documents_name_combinations() -> None:
    assert {("cpu",), ("export", "cpu"), ("tensorrt",)} <= documented_combinations()


def test_all_extras_together_resolve_within_the_constraints(resolve: Resolve) -> None:
    """So does each extra alone, and each combination: the pins are the same."""
    cases = [
        (EXTRAS, python, platform, "-c", str(ROOT / "constraints.txt"))
        for python, platform in product(PYTHONS, PLATFORMS)
    ]
    pinned = set(re.findall(r"^([a-z0-9-]+==[^ \n]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for pins in in_parallel(resolve, cases):
        assert set(pins.split()) <= pinned


def test_the_newest_versions_resolve(resolve: Resolve) -> None:
    """`pip install` without constraints, today."""
    in_parallel(resolve, [(EXTRAS, python, platform) for python, platform in product(PYTHONS, PLATFORMS)])


def test_the_lowest_versions_that_are_allowed_resolve(resolve: Resolve) -> None:
    """Each extra alone and each documented combination, on the oldest and the newest Python."""
    combinations = {*((extra,) for extra in EXTRAS), *documented_combinations()}
    combinations = {extras for extras in combinations if NOT_FROM_PYPI_ALONE not in extras}
    corners = ((PYTHONS[0], PLATFORMS[0]), (PYTHONS[-1], PLATFORMS[1]))
    cases = [
        (extras, *corner, "--resolution", "lowest-direct")
        for extras in sorted(combinations)
        for corner in corners
    ]
    in_parallel(resolve, cases)


def test_rtx_on_aarch64_needs_glibc_2_35(resolve: Resolve) -> None:
    """The one extra that PyPI has for fewer machines than the others; README says so."""
    with pytest.raises(AssertionError, match=r"tensorrt-rtx-cu13-(libs|bindings)"):
        resolve(("rtx",), "3.12", "aarch64-manylinux_2_34")
    assert "tensorrt-rtx==" in resolve(("rtx",), "3.12", "aarch64-manylinux_2_35")
