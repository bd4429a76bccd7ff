# SPDX-License-Identifier: Apache-2.0
"""PyTorch's number of CPU threads, for the duration of a block."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run torch on `count` threads within the block and restore the number afterwards, also after an error.
    None leaves it unchanged."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
