# SPDX-License-Identifier: Apache-2.0
"""Progress bars on stderr, where that is a terminal, and nothing anywhere else."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, label: str = "", **options: Any) -> Any:
    """tqdm over `items`, with its `options`; without a display if stderr is no terminal or is closed."""
    return tqdm(items, label, disable=not _is_terminal(), **options)


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed by the host
        return False
