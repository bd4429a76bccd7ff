# SPDX-License-Identifier: Apache-2.0
"""Compare what two revisions make: python -m tests.revisions OLD [NEW] [--folder DIR]

Each writes toy checkpoints, two bundles of them and videos (workload.py) by its committed files and this
interpreter's packages. Every difference that allowed.py does not list is printed, as is every entry of the
list that did not occur; either gives exit code 1. NEW is HEAD. Takes about 6 minutes.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.revisions.allowed import ALLOWED, Allowed, expected, sort_out
from tests.revisions.compare import Difference, files_below, folder_differences
from tests.revisions.revision import commit_of, extract, git, python_of, run_python

WORKLOAD = Path(__file__).with_name("workload.py")
SHOWN = 6
"""Differences that are printed for an entry of the list."""


def made_by(commit: str, folder: Path) -> Path:
    """What WORKLOAD writes with a commit's lamp_trt; kept in `folder`, and made only once there."""
    workload = hashlib.sha256(WORKLOAD.read_bytes()).hexdigest()[:8]
    done = folder / f"{commit[:12]}-{workload}"
    if done.is_dir():
        return done
    with tempfile.TemporaryDirectory(prefix=f"{commit[:12]}-", dir=folder) as name:
        work = Path(name)
        python = python_of(extract(commit, work / "source"), work / "venv")
        (work / "made").mkdir()
        run_python(python, str(WORKLOAD), ".", cwd=work / "made", cache=work / "cache")
        return Path(shutil.move(work / "made", done))


def print_report(found: Mapping[Allowed, list[Difference]], others: Iterable[Difference]) -> bool:
    """Whether all is as allowed.py says."""
    stale = [each for each, differences in found.items() if not differences]
    for each, differences in found.items():
        if differences:
            print(f"allowed   {each.where}: {each.reason}\n          CHANGELOG: {each.changelog}")
            for difference in differences[:SHOWN]:
                print(f"            {difference.where}: {difference.what}")
            if len(differences) > SHOWN:
                print(f"            and {len(differences) - SHOWN} more")
    for difference in (others := list(others)):
        print(f"DIFFERENT {difference.where}: {difference.what}")
    for each in stale:
        print(f"STALE     {each.where}: allowed, but did not occur. CHANGELOG: {each.changelog}")
    print(
        f"{sum(map(len, found.values()))} differences allowed by {len(found)} entries, "
        f"{len(others)} not allowed, {len(stale)} stale entries"
    )
    return not others and not stale


def compare(old: str, new: str, folder: Path) -> bool:
    commits = [commit_of(old), commit_of(new)]
    before, after = (made_by(commit, folder) for commit in commits)
    changelogs = [git("show", f"{commit}:CHANGELOG.md").decode() for commit in commits]
    files = len(files_below(after))
    print(f"{old} ({commits[0][:12]}) and {new} ({commits[1][:12]}): {files} files, CHANGELOG read from both")
    return print_report(
        *sort_out(folder_differences(before, after), expected(ALLOWED, changelogs[0], changelogs[1]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.revisions", description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--folder", type=Path, help="keep what the revisions made there, and use it again")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        sys.exit(not compare(args.old, args.new, args.folder.resolve()))
    with tempfile.TemporaryDirectory(prefix="lamp-trt-revisions-") as name:
        sys.exit(not compare(args.old, args.new, Path(name)))


if __name__ == "__main__":
    main()
