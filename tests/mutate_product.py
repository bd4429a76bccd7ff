# SPDX-License-Identifier: Apache-2.0
"""Seeds one fault at a time into a copy of the product's largest modules, and reports those that their tests
do not catch.

    python -m tests.mutate_product [WORD]      # WORD: only mutations whose file or description holds it

A mutation counts as caught if one of its tests fails. First all tests that are named run on the copy as it
is, where they must pass. Exit code 1 if a mutation survives, or no longer fits the source. Fifteen minutes
of CPU time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--no-header")
PASSED, FAILED = 0, 1
"""pytest's exit codes; others say that it could not run the tests."""


@dataclass(frozen=True)
class Copy:
    """A copy of the repository in `tree`, and a Python that imports lamp_trt from it."""

    tree: Path
    python: Path

    def run_tests(self, tests: Iterable[str], shared: Path | None) -> subprocess.CompletedProcess[str]:
        """shared: folder for bundles that are made of the code as it is; None: this run makes its own."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("LAMP_TRT_GOLDEN", None)
        environment.pop("LAMP_TRT_SHARED_FOLDERS", None)
        if shared is not None:
            shared.mkdir(exist_ok=True)
            environment["LAMP_TRT_SHARED_FOLDERS"] = str(shared)
        return subprocess.run(
            [str(self.python), *PYTEST, *tests],
            cwd=self.tree,
            env=environment,
            capture_output=True,
            text=True,
        )


def copy_repository(folder: Path) -> Copy:
    """Tracked and new files as they are in the working tree, and an environment over this one's packages.

    An environment of its own, since an editable installation finds lamp_trt before PYTHONPATH does.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    tree = folder / "tree"
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if os.path.lexists(ROOT / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    inherited = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "copy.pth").write_text("\n".join([str(tree / "src"), *inherited]) + "\n")
    python = environment / "bin" / "python"
    code = "import lamp_trt; print(lamp_trt.__file__)"
    imported = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    if tree not in Path(imported.stdout).parents:
        raise SystemExit(f"lamp_trt is imported from {imported.stdout.strip()}, not from the copy")
    return Copy(tree, python)


def misfit(mutation: Mutation) -> str:
    """Why a mutation does not fit the source, "" if it does."""
    found = (ROOT / mutation.file).read_text().count(mutation.old)
    return "" if found == 1 else f"{mutation.old!r} occurs {found} times"


def caught_by(mutation: Mutation, copy: Copy, shared: Path) -> str:
    """The test that failed, "" if none did. A mutation in export makes bundles of its own."""
    path = copy.tree / mutation.file
    source = path.read_text()
    path.write_text(source.replace(mutation.old, mutation.new))
    try:
        done = copy.run_tests(mutation.tests, None if mutation.file.startswith("export/") else shared)
    finally:
        path.write_text(source)
    if done.returncode == PASSED:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != FAILED or not failed:
        raise SystemExit(f"{mutation.file}: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return failed[0].split()[1].rpartition("/")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", default="")
    word = parser.parse_args(arguments).word
    chosen = [mutation for mutation in MUTATIONS if word in f"{mutation.file}: {mutation.what}"]
    if not chosen:
        raise SystemExit(f"no mutation holds {word!r}")
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="lamp-trt-mutate-") as folder:
        copy, shared = copy_repository(Path(folder)), Path(folder, "shared")
        sound = copy.run_tests(dict.fromkeys(test for mutation in chosen for test in mutation.tests), shared)
        if sound.returncode != PASSED:
            raise SystemExit(f"without a mutation the tests fail:\n{sound.stdout}{sound.stderr}")
        print(f"without a mutation: {sound.stdout.splitlines()[-1]}", flush=True)
        for mutation in chosen:
            start = time.monotonic()
            problem = misfit(mutation)
            caught = "" if problem else caught_by(mutation, copy, shared)
            survivors += not caught
            verdict = f"caught by {caught}" if caught else f"NOT CAUGHT {problem}".strip()
            seconds = time.monotonic() - start
            print(f"{mutation.file}: {mutation.what}: {verdict} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
