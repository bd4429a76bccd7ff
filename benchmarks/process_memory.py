# SPDX-License-Identifier: Apache-2.0
"""The resident memory of this process."""

import re
from pathlib import Path


def process_memory() -> tuple[int, int]:
    """Bytes now and at the peak.

    Not getrusage's ru_maxrss: after exec it starts from the peak of the process that started this one.
    """
    fields = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return 1024 * int(fields["VmRSS"]), 1024 * int(fields["VmHWM"])
