# SPDX-License-Identifier: Apache-2.0
"""Limits of this process, for processes that decode files of strangers."""

import resource
from collections.abc import Mapping


def limit_process(limits: Mapping[int, int]) -> None:
    """Set limits by resource.RLIMIT_…, soft and hard, in this order; a lower hard limit stays."""
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
