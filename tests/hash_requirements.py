# SPDX-License-Identifier: Apache-2.0
"""Writes requirements-ci.txt: constraints.txt with the digest of each file that pip would install here.

Run it with the Python and on the platform that CI has, after every change of constraints.txt:
    python tests/hash_requirements.py
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = """\
# constraints.txt with the digest of every file, for an installation that takes no index's word
# (Linux x86-64, CPython 3.11; torch is the CPU wheel 2.13.0+cpu, PyPI's file has another digest):
#   pip install --require-hashes --no-deps -r requirements-ci.txt
#   pip install --no-deps --no-build-isolation -e .
# Made by tests/hash_requirements.py.
"""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    command += ["--no-deps", "--report", "-", *pins]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    digests = {
        normalized(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in report["install"]
    }
    lines = [f"{pin} --hash=sha256:{digests[normalized(pin.partition('==')[0])]}\n" for pin in pins]
    (ROOT / "requirements-ci.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
