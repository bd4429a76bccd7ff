# SPDX-License-Identifier: Apache-2.0
"""The memory that this process may use."""

import re
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> tuple[int, int]:
    """(total, available) memory of this process in bytes; a container's limit is respected."""
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    total, available = (int(fields[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for file in _CGROUP_LIMITS:
        text = file.read_text().strip() if file.is_file() else ""
        if text.isdecimal():  # else "max"
            total = min(total, int(text))
    return total, min(total, available)
