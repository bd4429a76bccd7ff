# SPDX-License-Identifier: Apache-2.0
"""The pool of local processes: the conformance suite, and its restarts."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lamp_trt.serving.pools.local_pool import LocalPool, RestartPolicy
from tests.doubles.sleeping_engine import FACTORY
from tests.serving.pool_conformance import CHECKS, Harness

POLICY = RestartPolicy(first_delay=0.02, max_delay=0.05, max_failures=8, stop_seconds=2)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(
    check: Callable[[Harness], Awaitable[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    async def run() -> None:
        pool = LocalPool(FACTORY, {"0": {"steps": 12}, "1": {"steps": 12}}, POLICY)
        harness = Harness(pool, tmp_path)
        await pool.start(harness.events.append)
        try:
            await check(harness)
        finally:
            await pool.close()

    asyncio.run(run())


def test_a_process_that_does_not_start_is_tried_with_growing_delays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    delays: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        delays.append(seconds)
        await sleep(0)

    async def run() -> None:
        policy = RestartPolicy(first_delay=0.5, max_delay=1.5, max_failures=4, stop_seconds=2)
        pool = LocalPool("tests.doubles.sleeping_engine:no_such_function", {"0": {}}, policy)
        monkeypatch.setattr("lamp_trt.serving.pools.local_pool.asyncio.sleep", counted)
        changed = asyncio.Event()
        await pool.start(lambda event: changed.set())
        async with asyncio.timeout(60):
            while pool.health()[0].state != "down":
                await changed.wait()
                changed.clear()
        assert pool.health()[0].restarts == 3
        await pool.close()

    asyncio.run(run())
    assert delays == [0.5, 1.0, 1.5]
