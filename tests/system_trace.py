# SPDX-License-Identifier: Apache-2.0
"""System calls of a program, by strace: whom it talks to and which files it writes."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

LOCAL_FAMILIES = ("AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC")
NAME_LOOKUP = "/etc/resolv.conf"
_CALLS = (
    "%network,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")


@dataclass(frozen=True)
class Trace:
    """network: calls that address anything but this machine's local sockets, and look-ups of names.
    written: files opened to be written, folders made, and targets of renames and links; absolute."""

    returncode: int
    stdout: str
    stderr: str
    network: list[str]
    written: set[Path]

    def written_outside(self, *folders: Path) -> list[str]:
        """What was written, devices apart, but into none of `folders`."""
        allowed = (*folders, Path("/dev"), Path("/proc"))
        return sorted(
            str(path)
            for path in self.written
            if not any(path.is_relative_to(os.path.realpath(folder)) for folder in allowed)
        )


def require_strace() -> None:
    """Skip the test where system calls cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: make system-packages")
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")


def start(
    command: Sequence[str | Path], cwd: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """`command` under strace, children included. `finish` takes what comes of it."""
    traced = [
        "strace",
        "-f",
        "-y",
        "--seccomp-bpf",
        "-s",
        "4096",
        "-e",
        f"trace={_CALLS}",
        "-o",
        log,
        *command,
    ]
    return subprocess.Popen(
        traced, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], cwd: Path, log: Path) -> Trace:
    stdout, stderr = process.communicate()
    network, written = parse(log.read_text(errors="replace"), Path(os.path.realpath(cwd)))
    return Trace(process.returncode, stdout, stderr, network, written)


def parse(text: str, cwd: Path) -> tuple[list[str], set[Path]]:
    """`network` and `written` of a Trace, from what strace -f -y wrote about a program started in `cwd`."""
    network: list[str] = []
    written: set[Path] = set()
    begun: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        if match := _RESUMED.match(line):
            pid, call, rest = match.groups()
            rest = begun.pop((pid, call), "") + rest
        elif match := _CALL.match(line):
            pid, call, rest = match.groups()
            if rest.endswith("<unfinished ...>"):
                begun[pid, call] = rest.removesuffix("<unfinished ...>")
                continue
        else:
            continue
        if _is_remote(call, rest):
            network.append(f"{call}({rest}")
        written.update(cwd / path for path in _written(call, rest))
    return network, written


def _is_remote(call: str, rest: str) -> bool:
    if NAME_LOOKUP in rest:
        return True
    family = re.search(r"sa_family=(\w+)", rest)
    sends = call in ("connect", "sendto", "sendmsg", "sendmmsg")
    return sends and family is not None and family[1] not in LOCAL_FAMILIES


def _written(call: str, rest: str) -> list[str]:
    """The paths that a call which succeeded wrote to."""
    result = re.search(r"\) = (-?\d+)(?:<(.*)>)?[^<>]*$", rest)
    if result is None or result[1].startswith("-"):
        return []
    if call in ("open", "openat", "openat2", "creat"):
        writes = call == "creat" or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", rest)
        nameless = "O_TMPFILE" in rest  # no other program sees it, and it goes when it is closed
        return [result[2].removesuffix(" (deleted)")] if writes and result[2] and not nameless else []
    if call.startswith(("mkdir", "rename", "link", "symlink")):
        folders = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>, \"", rest)
        names = re.findall(r"\"((?:[^\"\\]|\\.)*)\"", rest[: result.start()])
        return [os.path.join(folders[-1] if folders else "", names[-1])] if names else []
    return []
