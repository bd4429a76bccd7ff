# SPDX-License-Identifier: Apache-2.0
"""A replica's engine without Ray: input files, previews of a slow front, and a front that is gone."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lamp_trt.serving.pools.pool import EngineJob, Event, Finished, Lost, Preview, Progress
from lamp_trt.serving.pools.restarts import RestartPolicy
from lamp_trt.serving.ray_pool import replica
from lamp_trt.serving.ray_pool.config import RayEngines
from lamp_trt.serving.ray_pool.transfer import Made, SentJob
from tests.doubles.sleeping_engine import FACTORY

ROOT = Path(__file__).parents[3]


@dataclass
class Wishes:
    """An actor: `wanted.remote(job)` is awaited."""

    answer: bool | Exception = False
    asked: int = 0
    wanted: Any = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = self

    async def remote(self, job: str) -> bool:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(replica, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(
        RayEngines, "restart_policy", lambda each: RestartPolicy(0.02, hang_seconds=each.hang_seconds)
    )


@asynccontextmanager
async def started(log: Path, hang_seconds: float = 60, **settings: Any) -> AsyncIterator[replica.Engine]:
    engine = replica.Engine.__new__(replica.Engine)
    engines = RayEngines({"log": str(log), **settings}, factory=FACTORY, hang_seconds=hang_seconds)
    await engine.__init__(asdict(engines))  # type: ignore[misc] - Ray awaits it
    try:
        yield engine
    finally:
        await engine._pool.close()
        engine._scratch.remove()


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await check()

    asyncio.run(main())


def job_of(folder: Path, prompt: str = "rain") -> EngineJob:
    return EngineJob("one", prompt, "a", {"seed": 1}, 8.0, folder / "front" / "one.mp4")


def test_files_of_the_front_are_read_before_sending_only(tmp_path: Path) -> None:
    frame, clip = tmp_path / "f.npy", tmp_path / "c.clip"
    frame.write_bytes(b"frame")
    clip.write_bytes(b"clip")
    given = {"path": str(clip), "start": 3, "every": 2, "name": "clip"}
    job = replace(job_of(tmp_path, "inputs"), first_frame=frame, clip=given)
    sent = SentJob.of(job)
    frame.unlink()
    clip.unlink()

    async def check() -> None:
        async with started(tmp_path / "log", steps=2) as engine:
            events = [event async for event in engine.make(sent, Wishes())]
        assert isinstance(events[-1], Made)
        assert events[-1].outputs["one.mp4"].endswith(b"inputsframeclip")

    run(check)
    unpacked = sent.unpacked(tmp_path)
    assert unpacked.clip is not None
    assert {**unpacked.clip, "path": ""} == {**given, "path": ""}


def test_a_slow_front_gets_the_newest_preview_and_slows_no_engine(tmp_path: Path) -> None:
    log, wishes = tmp_path / "log", Wishes(answer=True)

    async def check() -> None:
        events: list[Event | Made] = []
        async with started(log, steps=30, step_seconds=0.02) as engine:
            async for event in engine.make(SentJob.of(job_of(tmp_path)), wishes):
                events.append(event)
                if len(events) == 1:  # until the engine has made its last step
                    while log.read_text().count("step one") < 30:
                        await asyncio.sleep(0.02)
        previews = [each for each in events if isinstance(each, Preview)]
        assert 1 <= len(previews) <= 2
        assert previews[-1].step == 29
        assert isinstance(events[-1], Made)

    run(check)


def test_previews_end_when_they_are_no_longer_wanted(tmp_path: Path) -> None:
    wishes = Wishes()

    async def check() -> None:
        previews: list[Preview] = []
        async with started(tmp_path / "log", steps=60, step_seconds=0.02) as engine:
            async for event in engine.make(SentJob.of(job_of(tmp_path)), wishes):
                if isinstance(event, Progress) and event.done >= 5 and not previews:
                    wishes.answer = True
                if isinstance(event, Preview):
                    previews.append(event)
                    wishes.answer = False
        assert 1 <= len(previews) < 30
        asked = wishes.asked
        await asyncio.sleep(0.1)
        assert wishes.asked == asked

    run(check)


def test_a_hung_engine_is_said_to_be_hung(tmp_path: Path) -> None:
    async def check() -> None:
        async with started(tmp_path / "log", hang_seconds=2) as engine:
            events = [e async for e in engine.make(SentJob.of(job_of(tmp_path, "hang at begin")), Wishes())]
            assert isinstance(events[-1], Lost)
            assert events[-1].hung
            assert engine._pool.slots()  # make ended when the engine was back

    run(check)


def test_the_job_of_a_front_that_is_gone_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RayError(Exception):
        pass

    class ActorDiedError(RayError):
        pass

    exceptions = ModuleType("ray.exceptions")
    vars(exceptions).update(RayError=RayError, ActorDiedError=ActorDiedError)
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)

    async def check() -> None:
        for error, outcome in ((RayError("starting again"), None), (ActorDiedError("gone"), "cancelled")):
            async with started(tmp_path / "log", steps=20, step_seconds=0.02) as engine:
                events = [e async for e in engine.make(SentJob.of(job_of(tmp_path)), Wishes(error))]
            assert (events[-1].outcome if isinstance(events[-1], Finished) else None) == outcome

    run(check)
