# SPDX-License-Identifier: Apache-2.0
"""What every pool must do, as checks over a pool of two sleeping engines. A pool's test file runs them all.

Each check is a coroutine of a started Harness.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamp_trt.serving.pools.pool import EngineJob, Event, Finished, Lost, Pool, Preview, Progress, Slot

SECONDS = 60.0


@dataclass
class Harness:
    """A pool with the events that it reported."""

    pool: Pool
    folder: Path
    events: list[Event] = field(default_factory=list)

    def job(self, name: str, prompt: str = "x", motion: str = "a") -> EngineJob:
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        return EngineJob(name, prompt, motion, {"seed": 1}, 8.0, files / f"{name}.mp4")

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.01)

    async def slots(self, count: int) -> list[Slot]:
        await self.until(lambda: len(self.pool.slots()) >= count)
        return [*self.pool.slots()]

    def ends(self, name: str) -> list[Event]:
        return [each for each in self.events if isinstance(each, Finished | Lost) and each.job == name]

    async def end(self, name: str) -> Event:
        await self.until(lambda: self.ends(name))
        return self.ends(name)[0]


async def a_job_reports_progress_and_its_file(harness: Harness) -> None:
    slot = (await harness.slots(1))[0]
    job = harness.job("one")
    harness.pool.run(slot, job)
    assert slot not in harness.pool.slots()
    end = await harness.end("one")
    assert isinstance(end, Finished)
    assert end.outcome == "completed"
    assert job.out.read_bytes().endswith(b"x")
    progress = [each for each in harness.events if isinstance(each, Progress)]
    assert [each.done for each in progress] == sorted(each.done for each in progress)
    assert progress[-1].done == progress[-1].total


async def input_files_reach_the_engine(harness: Harness) -> None:
    """Also a clip of the largest size that the server takes."""
    frame, clip = harness.folder / "one.npy", harness.folder / "one.clip"
    frame.write_bytes(b"frame")
    clip.write_bytes(b"clip" * (16 << 20))
    given = {"path": str(clip), "start": 0, "every": 1, "name": "clip"}
    job = replace(harness.job("one", "inputs"), first_frame=frame, clip=given)
    harness.pool.run((await harness.slots(1))[0], job)
    end = await harness.end("one")
    assert isinstance(end, Finished)
    assert end.outcome == "completed", end
    assert job.out.read_bytes().endswith(b"inputsframe" + clip.read_bytes())


async def a_job_whose_files_are_gone_leaves_its_engine_alone(harness: Harness) -> None:
    """As when it is deleted just after it was handed over."""
    slot = (await harness.slots(2))[0]
    harness.pool.run(slot, replace(harness.job("gone", "inputs"), first_frame=harness.folder / "gone.npy"))
    end = await harness.end("gone")
    assert isinstance(end, Finished), end
    assert end.outcome == "failed"
    assert "its files cannot be read" in str(end.message)
    await harness.slots(2)
    assert [each.restarts for each in harness.pool.health()] == [0, 0]


async def engines_work_at_the_same_time(harness: Harness) -> None:
    first, second = (await harness.slots(2))[:2]
    harness.pool.run(first, harness.job("one"))
    harness.pool.run(second, harness.job("two"))
    assert harness.pool.slots() == []
    await harness.end("one")
    await harness.end("two")
    running = [each.job for each in harness.events if isinstance(each, Progress)]
    assert "two" in running[: len(running) - running[::-1].index("one")]


async def cancelling_frees_the_engine_and_leaves_no_file(harness: Harness) -> None:
    slot = (await harness.slots(2))[0]
    job = harness.job("one")
    harness.pool.run(slot, job)
    await harness.until(lambda: any(isinstance(each, Progress) for each in harness.events))
    harness.pool.cancel("one")
    harness.pool.cancel("unknown")
    end = await harness.end("one")
    assert isinstance(end, Finished)
    assert end.outcome == "cancelled"
    assert [*job.out.parent.iterdir()] == []
    harness.pool.run((await harness.slots(2))[0], harness.job("two"))
    assert isinstance(await harness.end("two"), Finished)


async def cancelling_before_the_first_step_counts(harness: Harness) -> None:
    harness.pool.run((await harness.slots(1))[0], harness.job("one"))
    harness.pool.cancel("one")
    end = await harness.end("one")
    assert isinstance(end, Finished)
    assert end.outcome == "cancelled"


async def previews_come_only_while_they_are_asked_for(harness: Harness) -> None:
    def previews(name: str) -> list[Preview]:
        return [each for each in harness.events if isinstance(each, Preview) and each.job == name]

    first, second = (await harness.slots(2))[:2]
    harness.pool.run(first, harness.job("one"))
    harness.pool.run(second, harness.job("two"))
    harness.pool.show_previews("one", True)
    harness.pool.show_previews("unknown", True)
    await harness.until(lambda: previews("one"))
    assert base64.b64decode(previews("one")[0].webp)[8:12] == b"WEBP"
    await harness.end("one")
    await harness.end("two")
    assert previews("two") == []
    assert [each.step for each in previews("one")] == sorted({each.step for each in previews("one")})
    harness.pool.show_previews("one", True)
    harness.pool.run((await harness.slots(2))[0], harness.job("three"))
    harness.pool.show_previews("three", True)
    await harness.until(lambda: previews("three"))
    harness.pool.show_previews("three", False)
    count = len(previews("three"))
    await harness.end("three")
    assert len(previews("three")) <= count + 2  # those under way


async def refusals_are_failures_with_their_code(harness: Harness) -> None:
    for prompt, code in (
        ("refuse", "content_policy"),
        ("no space", "out_of_space"),
        ("break", "engine_error"),
    ):
        harness.pool.run((await harness.slots(2))[0], harness.job(code, prompt))
        end = await harness.end(code)
        assert isinstance(end, Finished)
        assert (end.outcome, end.code) == ("failed", code)


async def a_killed_engine_loses_its_job_and_comes_back(harness: Harness) -> None:
    for stage in ("begin", "denoise", "save", "end"):
        harness.pool.run((await harness.slots(2))[0], harness.job(stage, f"kill at {stage} always"))
        assert isinstance(await harness.end(stage), Lost)
    await harness.slots(2)
    harness.pool.run((await harness.slots(2))[0], harness.job("after"))
    assert isinstance(await harness.end("after"), Finished)


async def a_switched_motion_is_said(harness: Harness) -> None:
    slot = (await harness.slots(2))[0]
    harness.pool.run(slot, harness.job("one", motion="b"))
    end = await harness.end("one")
    assert isinstance(end, Finished)
    assert end.switched


async def each_job_ends_once_and_nothing_comes_after_close(harness: Harness) -> None:
    slots = (await harness.slots(2))[:2]
    harness.pool.run(slots[0], harness.job("one"))
    harness.pool.run(slots[1], harness.job("two", "kill at denoise always"))
    await harness.end("one")
    await harness.end("two")
    await harness.slots(2)
    harness.pool.run((await harness.slots(2))[0], harness.job("three"))
    await harness.pool.close()
    count = len(harness.events)
    await asyncio.sleep(0.3)
    assert len(harness.events) == count
    assert len(harness.ends("one")) == len(harness.ends("two")) == 1


CHECKS: tuple[Callable[[Harness], Awaitable[None]], ...] = (
    a_job_reports_progress_and_its_file,
    input_files_reach_the_engine,
    a_job_whose_files_are_gone_leaves_its_engine_alone,
    engines_work_at_the_same_time,
    cancelling_frees_the_engine_and_leaves_no_file,
    cancelling_before_the_first_step_counts,
    previews_come_only_while_they_are_asked_for,
    refusals_are_failures_with_their_code,
    a_killed_engine_loses_its_job_and_comes_back,
    a_switched_motion_is_said,
    each_job_ends_once_and_nothing_comes_after_close,
)
