# SPDX-License-Identifier: Apache-2.0
"""cuDNN's choice of algorithms while a package runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CUDNN_BENCHMARK = "cudnn_benchmark"
"""Option of a package, part of its key: cuDNN times its algorithms at the first run of every convolution."""


@contextmanager
def cudnn_benchmark(torch: Any, on: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms, or leave torch's setting as it is. The setting is the process's.

    torch: the module, which only engine.py imports.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
