# SPDX-License-Identifier: Apache-2.0
"""cuDNN's choice of algorithms while a package runs."""

from collections.abc import Iterator
from contextlib import contextmanager

CUDNN_BENCHMARK = "cudnn_benchmark"
"""Option of a package, part of its key: cuDNN times its algorithms at the first run of every convolution."""


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms, or leave torch's setting as it is. The setting is the process's."""
    import torch

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
