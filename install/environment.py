# SPDX-License-Identifier: Apache-2.0
"""Install the locked packages and lamp-trt itself, editable, into a virtual environment: `make install`.

    python3 install/environment.py .venv [auto|pypi]

The lock lists every package with the digests of its files, so pip resolves nothing. Without an NVIDIA GPU
torch's CPU build is installed, from pip's own sources or PyTorch's index, if one of them has it. Standard
library only. Uses Python 3.6 syntax, so that an old Python can print the message that it is too old.
"""

import glob
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_TIMEOUT_S = 5
CPU_LOCK, PYPI_LOCK = "requirements-ci.txt", "requirements-pypi.txt"
CPU_SIZE, PYPI_SIZE = "1.0 GB to fetch, 3.2 GB on disk", "3.3 GB to fetch, 6.8 GB on disk"


def say(text):
    print("install: " + text, flush=True)


def problem():
    """A sentence on what this Python lacks, or None."""
    version = platform.python_version()
    if sys.version_info[:2] < OLDEST:
        return "Python {} is too old: lamp-trt needs {}.{} or newer, name one with make PYTHON=…".format(
            version, *OLDEST
        )
    if sys.version_info[:2] > NEWEST:
        say("Python {} is newer than the lock knows ({}.{}); wheels may be missing.".format(version, *NEWEST))
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "this Python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv), "
            "then repeat the command."
        )
    return None


def create_venv(folder):
    import venv

    venv.create(folder, with_pip=True, symlinks=True)


def pip(python, *arguments, **options):
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, **options)


def has_gpu():
    return bool(glob.glob("/dev/nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def cpu_torch_version():
    lines = (ROOT / CPU_LOCK).read_text().splitlines()
    return next(line for line in lines if line.startswith("torch==")).split()[0]


def cpu_torch_source(python):
    """(pip's options for torch's CPU build, its source), or (None, why it is not available)."""
    wanted = cpu_torch_version()
    code = "import importlib.metadata as m; print('torch==' + m.version('torch'))"
    installed = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if installed.stdout.decode().strip() == wanted:
        return [], "installed already"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    local = pip(python, "install", "--dry-run", "--no-index", "--no-deps", wanted, **quiet)
    if local.returncode == 0:
        return [], "from pip's find-links"
    try:
        urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=CPU_INDEX_TIMEOUT_S).close()
    except OSError as error:
        return None, "{} cannot be reached ({})".format(CPU_INDEX, getattr(error, "reason", error))
    return ["--extra-index-url", CPU_INDEX], "from " + CPU_INDEX


def locked_packages(python, torch):
    """Return (lock file, pip's options) and print what will be fetched. torch: "auto" or "pypi"."""
    if torch == "pypi":
        say(f"PyPI's torch with CUDA: about {PYPI_SIZE}.")
        return PYPI_LOCK, []
    if has_gpu():
        say(f"this machine has an NVIDIA GPU: PyPI's torch with CUDA, about {PYPI_SIZE}.")
        return PYPI_LOCK, []
    options, source = cpu_torch_source(python)
    if options is None:
        say(f"{source}, so torch comes from PyPI, with CUDA: about {PYPI_SIZE}.")
        return PYPI_LOCK, []
    say(f"torch's CPU build {source}: about {CPU_SIZE} in all.")
    return CPU_LOCK, options


def main(folder, torch="auto"):
    missing = problem()
    if missing:
        sys.exit("install: " + missing)
    python = Path(folder) / "bin" / "python"
    create_venv(folder)
    lock, options = locked_packages(python, torch)
    steps = (
        ("install", "--quiet", "--require-hashes", "--no-deps", *options, "-r", str(ROOT / lock)),
        ("install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT)),
        ("check",),
    )
    for step in steps:
        code = pip(python, *step).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
