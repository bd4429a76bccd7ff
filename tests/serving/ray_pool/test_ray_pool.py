# SPDX-License-Identifier: Apache-2.0
"""The pool on Ray Serve: conformance, placement on GPUs, killed replicas, failing engines, what is left over.

One cluster with two pretended GPUs and two replicas serves most tests; starting it takes 10 s and more.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("ray") is None:  # not imported here: its authentication is set up before its first import
    pytest.skip("needs ray: pip install 'lamp-trt[ray]'", allow_module_level=True)

from lamp_trt.serving.pools.pool import Finished, Lost, Progress
from lamp_trt.serving.ray_pool.cluster import OwnCluster, Status
from lamp_trt.serving.ray_pool.config import RayEngines
from lamp_trt.serving.ray_pool.pool import RayPool
from tests.doubles.placed_engine import FACTORY
from tests.serving.pool_conformance import CHECKS, Harness
from tests.serving.serving_process import descendants, wait_until_dead

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own code warns
START_SECONDS = 240


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        yield


def wait_for_replicas(cluster: OwnCluster, count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (status := cluster.status()).running < count:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "log"


@pytest.fixture(scope="module")
def shared(environment: None, log: Path) -> Iterator["Shared"]:
    """Two replicas on two pretended GPUs."""
    before = descendants(os.getpid())
    settings = {"steps": 12, "step_seconds": 0.1, "log": str(log)}
    cluster = OwnCluster(RayEngines(settings, 2, 2, num_gpus=1, num_cpus=1, factory=FACTORY), num_gpus=2)
    processes: set[int] = set()
    try:
        cluster.open()
        wait_for_replicas(cluster, 2)
        yield Shared(cluster)
        processes = descendants(os.getpid()) - before
        assert len(processes) > 4
    finally:
        cluster.close()
    assert wait_until_dead(processes) == set()
    assert cluster.folder is not None
    assert not cluster.folder.exists()


class Shared:
    """The connection of one pool to the cluster of all tests."""

    def __init__(self, cluster: OwnCluster) -> None:
        self._cluster = cluster

    def open(self) -> None:
        wait_for_replicas(self._cluster, 2)

    def handle(self) -> Any:
        return self._cluster.handle()

    def status(self) -> Status:
        return self._cluster.status()

    def close(self) -> None:
        """The cluster goes on."""


def run(check: Callable[[Harness], Awaitable[None]], shared: Shared, folder: Path) -> None:
    async def main() -> None:
        harness = Harness(RayPool(shared), folder)
        await harness.pool.start(harness.events.append)
        try:
            await check(harness)
        finally:
            await harness.pool.close()

    asyncio.run(main())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[Harness], Awaitable[None]], shared: Shared, tmp_path: Path) -> None:
    run(check, shared, tmp_path)


def test_each_replica_has_a_gpu_and_its_number_of_threads(shared: Shared, log: Path, tmp_path: Path) -> None:
    async def check(harness: Harness) -> None:
        for slot, name in zip(await harness.slots(2), ("one", "two"), strict=True):
            harness.pool.run(slot, harness.job(name))
        await harness.end("one")
        await harness.end("two")

    run(check, shared, tmp_path)
    placed = [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("placed")]
    assert {(gpu, threads) for gpu, threads, *_ in placed} == {("0", "1"), ("1", "1")}


@pytest.mark.parametrize("victim", ["replica", "engine"])
def test_a_killed_process_loses_its_job_and_comes_back(
    shared: Shared, log: Path, tmp_path: Path, victim: str
) -> None:
    async def check(harness: Harness) -> None:
        harness.pool.run((await harness.slots(2))[0], harness.job("one"))
        await harness.until(lambda: any(isinstance(each, Progress) for each in harness.events))
        engine = next(line.split()[3] for line in log.read_text().splitlines() if line.endswith(" one"))
        parent = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(parent if victim == "replica" else engine), signal.SIGKILL)
        assert isinstance(await harness.end("one"), Lost)
        assert sum(each.restarts for each in harness.pool.health()) == 1
        assert wait_until_dead({int(engine)}) == set()
        await harness.slots(2)
        harness.pool.run((await harness.slots(2))[0], harness.job("two"))
        assert isinstance(await harness.end("two"), Finished)

    log.write_text("")
    run(check, shared, tmp_path)


def moved(harness: Harness) -> set[str]:
    return {each.job for each in harness.events if isinstance(each, Progress)}


def test_an_engine_takes_its_next_job_when_it_is_done_with_the_cancelled_one(
    shared: Shared, log: Path, tmp_path: Path
) -> None:
    async def check(harness: Harness) -> None:
        for turn in range(3):
            first, second = (await harness.slots(2))[:2]
            harness.pool.run(first, harness.job(f"a{turn}"))
            harness.pool.run(second, harness.job(f"b{turn}"))
            names = {f"a{turn}", f"b{turn}"}
            await harness.until(lambda: names <= moved(harness))  # noqa: B023 - awaited in this turn
            for name in names:
                harness.pool.cancel(name)
                end = await harness.end(name)
                assert isinstance(end, Finished)
                assert end.outcome == "cancelled"
        harness.pool.run((await harness.slots(2))[0], harness.job("last"))
        await harness.end("last")

    log.write_text("")
    run(check, shared, tmp_path)
    running: dict[str, str] = {}
    cancelled = 0
    for words in map(str.split, log.read_text().splitlines()):
        if words[0] == "placed":
            _, _, _, pid, job = words
            assert pid not in running, f"{job} began while {running.get(pid)} ran"
            running[pid] = job
        elif words[0] == "cancelled":
            cancelled += 1
            assert int(words[2]) < 12
            running = {pid: job for pid, job in running.items() if job != words[1]}
    assert cancelled == 6


def test_engines_of_another_bundle_are_refused(shared: Shared, tmp_path: Path) -> None:
    async def main() -> None:
        pool = RayPool(shared, expect_bundle="0" * 64)
        changed = asyncio.Event()
        await pool.start(lambda event: changed.set())
        try:
            async with asyncio.timeout(60):
                while pool.health()[0].state != "down":
                    await changed.wait()
                    changed.clear()
            assert "bundle" in str(pool.health()[0].reason)
        finally:
            await pool.close()

    asyncio.run(main())
