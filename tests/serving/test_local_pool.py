# SPDX-License-Identifier: Apache-2.0
"""The pool of local processes: the conformance suite, and its restarts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.serving.pools.local_pool import LocalPool
from lamp_trt.serving.pools.pool import Finished, Lost
from lamp_trt.serving.pools.restarts import RestartPolicy
from tests.doubles.sleeping_engine import FACTORY
from tests.serving.pool_conformance import CHECKS, Harness
from tests.serving.serving_process import wait_until_dead

POLICY = RestartPolicy(first_delay=0.02, max_delay=0.05, max_failures=8, stop_seconds=2)
QUICK = replace(POLICY, hang_seconds=2.0)


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


def test_engines_that_make_no_step_are_killed_and_others_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hangs at three stages, next to an idle engine and a video that takes longer than hang_seconds."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    stages = ("begin", "denoise", "save")

    async def run() -> None:
        settings = {"steps": 30, "step_seconds": 0.1}
        pool = LocalPool(FACTORY, dict.fromkeys("01234", settings), QUICK)
        harness = Harness(pool, tmp_path)
        await pool.start(harness.events.append)
        try:
            slots = await harness.slots(5)
            for slot, stage in zip(slots, stages, strict=False):
                harness.pool.run(slot, harness.job(stage, f"hang at {stage}"))
            harness.pool.run(slots[3], harness.job("long"))
            pids = {each.pid for each in pool.health()[:3] if each.pid is not None}
            for stage in stages:
                end = await harness.end(stage)
                assert isinstance(end, Lost)
                assert end.hung
                assert "made no step for 2 s" in end.reason
            assert wait_until_dead(pids) == set()
            assert isinstance(await harness.end("long"), Finished)
            await harness.slots(5)
            assert [each.restarts for each in pool.health()] == [1, 1, 1, 0, 0]
        finally:
            await pool.close()

    asyncio.run(run())


def test_an_engine_that_hangs_while_it_starts_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    flag = tmp_path / "hangs"
    flag.touch()

    async def run() -> None:
        pool = LocalPool(FACTORY, {"0": {"hangs_while": str(flag)}}, replace(POLICY, start_seconds=2))
        harness = Harness(pool, tmp_path)
        await pool.start(harness.events.append)
        try:
            await harness.until(lambda: pool.health()[0].pid)
            pid = pool.health()[0].pid
            await harness.until(lambda: pool.health()[0].restarts)
            assert "did not start within 2 s" in str(pool.health()[0].reason)
            assert wait_until_dead({pid or 0}) == set()
        finally:
            await pool.close()

    asyncio.run(run())


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_hang_timeout_that_cannot_be_used_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="the hang timeout is"):
        RestartPolicy(hang_seconds=seconds)


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
