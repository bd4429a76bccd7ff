# SPDX-License-Identifier: Apache-2.0
"""The training loop of the toy checkpoints, and a context that makes it reproducible."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Report = Callable[[str, int, int], None]
"""(name of the part being made, steps done, total steps)."""

WARM_UP_STEPS = 10


@contextmanager
def reproducible(seed: int) -> Iterator[torch.Generator]:
    """A context with a seeded generator, torch's global one seeded alike, and one thread: bit-reproducible.

    One thread costs little, since the networks are tiny. The global generator and the number of threads are
    restored afterwards.
    """
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            torch.set_num_threads(num_threads)


def train(
    loss: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    report: Report,
    what: str,
) -> None:
    """Minimise loss(step) with Adam: a short warm-up, a cosine decay to zero, gradients clipped to norm 1."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        optimizer.param_groups[0]["lr"] = learning_rate * warm_up * math.cos(math.pi / 2 * step / steps) ** 2
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(what, step + 1, steps)
