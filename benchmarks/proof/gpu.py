# SPDX-License-Identifier: Apache-2.0
"""Queries of the GPU through torch, in one place, so that tests can replace them."""

from contextlib import AbstractContextManager

import torch


def present() -> bool:
    return torch.cuda.is_available()


def name() -> str:
    return torch.cuda.get_device_name(0)


def own_stream() -> AbstractContextManager[object]:
    """A new stream is torch's current one inside."""
    stream: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    return stream


def release_cached() -> None:
    """Give what torch's allocator holds and does not use back."""
    torch.cuda.empty_cache()
