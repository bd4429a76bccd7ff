# SPDX-License-Identifier: Apache-2.0
"""Progress bars on stderr if that is a terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, label: str = "", **options: Any) -> Any:
    """Return tqdm over `items` with its `options`; it displays nothing if stderr is closed or not a
    terminal."""
    return tqdm(items, label, disable=not _is_terminal(), **options)


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed by the host
        return False
