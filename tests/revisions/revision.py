# SPDX-License-Identifier: Apache-2.0
"""A revision's files, and Python that imports its lamp_trt with this interpreter's other packages."""

import io
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def git(*arguments: str) -> bytes:
    """What git prints in this repository. SystemExit with its message if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise SystemExit("needs git, see make system-packages") from None
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def commit_of(revision: str) -> str:
    """The digest of a revision's commit. SystemExit if there is none."""
    try:
        name = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except SystemExit:
        raise SystemExit(f"there is no revision {revision!r}") from None
    return name.decode().strip()


def extract(revision: str, folder: Path) -> Path:
    """The committed files of `revision` in `folder`, which is made."""
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(git("archive", revision))) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def python_of(source: Path, folder: Path) -> Path:
    """A virtual environment's Python whose lamp_trt is the one below `source`.

    Its only .pth file names the source and this interpreter's packages: theirs are not read, so no editable
    installation comes before the source, also in child processes.
    """
    venv.create(folder, symlinks=True)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "revision.pth").write_text("\n".join([str(source / "src"), *packages]) + "\n")
    return folder / "bin" / "python"


def run_python(python: Path, *arguments: str, cwd: Path, cache: Path) -> None:
    """Run on one thread and without a network, with caches of its own. SystemExit if it fails."""
    ours = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    log = cache.with_suffix(".log")
    with log.open("wb") as file:
        code = subprocess.run(
            [str(python), *arguments], cwd=cwd, env=kept | ours, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        raise SystemExit(f"{python.parent.parent.name} ended with {code}:\n{log.read_text()[-4000:]}")
