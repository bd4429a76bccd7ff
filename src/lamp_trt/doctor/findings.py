# SPDX-License-Identifier: Apache-2.0
"""A finding of `doctor`, and checks in separate processes."""

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
    """One finding. remedy: how to fix the problem. blocks: purposes that cannot work because of it. data: the
    underlying figures."""

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
    """A requested purpose cannot work on this machine in its current state."""


def probe(code: str, timeout_s: float = 120) -> dict[str, Any]:
    """Run Python code in a separate process; return the JSON that it prints, {"error": last line} if it
    fails.

    A broken library may crash, hang, or leave settings behind, so it is not loaded in this process.
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
