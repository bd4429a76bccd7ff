# SPDX-License-Identifier: Apache-2.0
"""Python in a separate process."""

import os
import subprocess
import sys

from lamp_trt import NO_TELEMETRY


def run_python(*arguments: str, timeout_s: float | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` and return its exit code and output, which is text in any locale and with any
    PYTHONIOENCODING. ONNX Runtime's telemetry is off there, unless the host program has set the variable."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=timeout_s,
        check=False,
        env={NO_TELEMETRY: "1", **os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
    )
