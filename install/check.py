# SPDX-License-Identifier: Apache-2.0
"""Try the installation on PyPI alone, in environments that are deleted afterwards: `make test-install`.

    .venv/bin/python install/check.py python3.11 python3.12

1. On each Python: every `pip install` of README.md, CONTRIBUTING.md and docs/, and each extra that they
   mention elsewhere; then a check of what the extras are for.
2. On the first: the lowest versions that pyproject.toml allows, and CORE_TESTS on them.
3. On the last: `make test` with PyPI's build of torch.

pip's configuration is ignored. Takes up to an hour and 7 GB of disk. Exit code 1 if anything failed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPI = "https://pypi.org/simple"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md")
NOT_FROM_PYPI_ALONE = "tensorrt"
OTHER_EXTRAS = ("gpu", "rtx")
LOWEST_EXTRAS = ("export", "cpu", "openvino", "dev")
CORE_TESTS = (
    "cli/test_cli.py",
    "cli/test_package.py",
    "export/checkpoints/test_checkpoints.py",
    "export/test_build.py",
    "export/test_onnx.py",
    "runtime/media/test_image.py",
    "runtime/media/test_tokenizer.py",
    "runtime/media/test_video.py",
    "runtime/test_pipeline.py",
)
KEPT = ("PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_CACHE_DIR")


def environment() -> dict[str, str]:
    """This process's variables without pip's and uv's, which could name another index."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(("PIP_", "UV_", "MAKE", "VIRTUAL_ENV"))
    }
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command: object, cwd: Path) -> None:
    print("  $", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, env=environment(), check=True)


def copy_of_the_source(folder: Path) -> Path:
    made = shutil.ignore_patterns(".venv", ".git", "build", "demo", ".*_cache", "__pycache__", ".hypothesis")

    def ignored(path: str, names: list[str]) -> set[str]:
        return made(path, names) if Path(path) == ROOT else {"__pycache__"}

    return Path(shutil.copytree(ROOT, folder / "lamp-trt", symlinks=True, ignore=ignored))


def new_environment(python: str, folder: Path) -> Path:
    """Path of the Python of a new virtual environment with the newest pip."""
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    inside = folder / "venv" / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--upgrade", "pip", cwd=folder)
    return inside


def documented_blocks() -> list[tuple[str, ...]]:
    """The pip commands of each indented block in the documents, as written, without duplicates."""
    blocks: list[tuple[str, ...]] = []
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        for block in re.findall(r"(?:^    .*\n)+", path.read_text(), re.MULTILINE):
            commands = re.findall(r"^    \S*pip install (.+?)(?: {2,}#.*)?$", block, re.MULTILINE)
            if commands and tuple(commands) not in blocks:
                blocks.append(tuple(commands))
    return [*blocks, *((f"'.[{extra}]'",) for extra in OTHER_EXTRAS)]


def reachable(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except OSError:
        return False
    return True


def try_block(commands: tuple[str, ...], python: str, folder: Path) -> None:
    """Run a block's commands, then check what its extras are for. A block without lamp-trt, such as that of a
    client, is only installed."""
    source, inside = copy_of_the_source(folder), new_environment(python, folder)
    extras: set[str] = set()
    for command in commands:
        if CPU_INDEX in command and not reachable(f"{CPU_INDEX}/torch/"):
            print(f"  not tried, {CPU_INDEX} cannot be reached: pip install {command}")
            continue
        words = [word.strip("'").replace("lamp-trt[", ".[") for word in command.split()]
        run(inside, "-m", "pip", "install", "--quiet", *words, cwd=source)
        extras |= set(",".join(re.findall(r"\[(.+?)\]", command)).split(",")) - {""}
    run(inside, "-m", "pip", "check", cwd=folder)
    lamp_trt = inside.parent / "lamp-trt"
    if any(".[" in command or "lamp-trt[" in command for command in commands):
        run(lamp_trt, "--version", cwd=folder)
    if {"cpu", "gpu"} & extras:
        run(inside, "-c", "import lamp_trt, onnxruntime; print(onnxruntime.__version__)", cwd=folder)
    if "rtx" in extras:
        run(inside, "-c", "import tensorrt_rtx; print(tensorrt_rtx.__version__)", cwd=folder)
    if "export" in extras:
        run(lamp_trt, "toy", "toy", "--quiet", cwd=folder)
        motion = ("--motion", "rain=toy/motions/rain")
        run(lamp_trt, "build", "--quiet", "--sd", "toy/sd", *motion, "--out", "bundle", cwd=folder)
        run(lamp_trt, "inspect", "bundle", "--verify-files", cwd=folder)


def try_lowest_versions(python: str, folder: Path) -> None:
    source, inside = copy_of_the_source(folder), new_environment(python, folder)
    run(inside, "-m", "pip", "install", "--quiet", "uv", "scikit-build-core", cwd=folder)
    uv = inside.parent / "uv"
    extras = [f"--extra={extra}" for extra in LOWEST_EXTRAS]
    options = ["--no-config", "--default-index", PYPI, "--quiet"]
    lowest = ("--resolution", "lowest-direct", "-o", folder / "lowest.txt")
    run(uv, "pip", "compile", *options, "--python", inside, *extras, *lowest, "pyproject.toml", cwd=source)
    run(inside, "-m", "pip", "install", "--quiet", "--no-deps", "-r", folder / "lowest.txt", cwd=folder)
    run(inside, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ".", cwd=source)
    run(inside, "-m", "pip", "check", cwd=folder)
    tests = [source / "tests" / name for name in CORE_TESTS]
    # Old releases warn about newer versions of Python and NumPy; only failures matter here.
    run(inside, "-m", "pytest", "-q", "-W", "default", "-m", "not slow", *tests, cwd=source)


def try_suite(python: str, folder: Path) -> None:
    run("make", "test", f"PYTHON={python}", "TORCH=pypi", cwd=copy_of_the_source(folder))


def attempt(title: str, work: Callable[[Path], None]) -> bool:
    """Do `work` in a temporary folder; print its time and size, return whether it succeeded."""
    print(f"== {title}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lamp-trt-install-") as name:
        try:
            work(Path(name))
            done = True
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"  {error}", flush=True)
            done = False
        size = sum(path.lstat().st_size for path in Path(name).rglob("*")) / 1e6
    word = "ok" if done else "FAILED"
    print(f"== {word}: {title}, {time.monotonic() - start:.0f} s, {size:.0f} MB", flush=True)
    return done


def main(*pythons: str) -> None:
    if len(pythons) < 2:
        raise SystemExit("name two Pythons: make test-install PYTHONS='python3.11 python3.13'")
    found = [shutil.which(python) or "" for python in pythons]
    if "" in found:
        raise SystemExit(f"there is no {pythons[found.index('')]}: make test-install PYTHONS='…'")
    done = []
    for python in found:
        for block in documented_blocks():
            if not any(f"[{NOT_FROM_PYPI_ALONE}]" in command for command in block):
                title = f"{python}: {'; '.join(f'pip install {command}' for command in block)}"
                done.append(attempt(title, lambda folder, b=block, p=python: try_block(b, p, folder)))
    done.append(attempt(f"{found[0]}: lowest versions", lambda folder: try_lowest_versions(found[0], folder)))
    done.append(attempt(f"{found[-1]}: make test", lambda folder: try_suite(found[-1], folder)))
    print(f"{sum(done)} passed, {len(done) - sum(done)} failed")
    raise SystemExit(not all(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
