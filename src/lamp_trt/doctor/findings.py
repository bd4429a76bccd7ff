# SPDX-License-Identifier: Apache-2.0
"""One thing that `doctor` found out."""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any

from lamp_trt.child import run_python
from lamp_trt.engine.backends.probe import Purpose, Status
from lamp_trt.engine.errors import LampError

PURPOSES: tuple[Purpose, ...] = ("build", "generate")


@dataclass(frozen=True)
class Finding:
    """remedy: what to do about it. blocks: what cannot work at all because of it. data: figures behind it."""

    section: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
    blocks: tuple[Purpose, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class DiagnosisError(LampError, RuntimeError):
    """Something that was asked for cannot work on this machine as it is."""


def probe(code: str, timeout_s: float = 120) -> dict[str, Any]:
    """What `code` prints as JSON in a Python of its own; {"error": its last line} if it fails.

    A library that is broken may crash, hang, or leave settings behind: not in our process.
    """
    try:
        done = run_python("-c", code, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        return {"error": lines[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
