# SPDX-License-Identifier: Apache-2.0
"""The deployment of Ray Serve: a replica owns one engine process and streams the events of its jobs."""

import asyncio
import os
import tempfile
import traceback
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import EngineError
from lamp_trt.serving.pools.local_pool import LocalPool
from lamp_trt.serving.pools.pool import Event, Finished, Lost, Preview
from lamp_trt.serving.ray_pool.config import CONSTRUCTOR_TRIES, DEPLOYMENT, RayEngines
from lamp_trt.serving.ray_pool.scratch import Scratch
from lamp_trt.serving.ray_pool.transfer import Made, SentJob
from lamp_trt.serving.ray_pool.wishes import ASK_SECONDS, actor_error, front_is_gone


class Outbox:
    """Events of a job on their way to the front, of previews the newest one, however slowly they leave."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._more = asyncio.Event()

    def put(self, event: Event) -> None:
        if isinstance(event, Preview):
            self._events = deque(each for each in self._events if not isinstance(each, Preview))
        self._events.append(event)
        self._more.set()

    async def get(self) -> Event:
        while not self._events:
            self._more.clear()
            await self._more.wait()
        return self._events.popleft()


class Engine:
    """One engine in a process of its own, which ends with the replica.

    Ray may give a replica its next request before a cancelled job has ended, so a job begins when the engine
    says that it is idle.
    """

    async def __init__(self, arguments: Mapping[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        self._arguments = arguments
        self._changed = asyncio.Event()
        self._current: tuple[str, Outbox] | None = None
        self._scratch = Scratch()
        policy = RayEngines(**arguments).restart_policy()
        self._pool = LocalPool(arguments["factory"], {"0": arguments["settings"]}, policy)
        await self._pool.start(self._on_event)
        await self._until_idle()

    def describe(self) -> dict[str, Any]:
        """bundle: digest. max_replicas: of the application."""
        return {
            "bundle": self._arguments["settings"].get("expect_bundle"),
            "max_replicas": self._arguments["max_replicas"],
        }

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica after an exception."""
        health = self._pool.health()[0]
        if health.state == "down":
            raise EngineError(f"the engine stays down: {health.reason}")

    async def make(self, sent: SentJob, wishes: Any) -> AsyncIterator[Event | Made]:
        """Make a video; yields Progress and Previews, then a Made, Finished or Lost. Leaving the generator
        stops the engine within a step. After a Lost it goes on until the engine is back, so that Ray gives
        the replica no other request before. wishes: the front's actor, see wishes.py."""
        await self._until_idle_or_exit()
        self._scratch.clear()
        folder = Path(tempfile.mkdtemp(dir=self._scratch.folder))
        job = await asyncio.to_thread(sent.unpacked, folder)
        events = Outbox()
        self._current = (job.id, events)
        self._pool.run(self._pool.slots()[0], job)
        asking = asyncio.create_task(self._ask_for_previews(job.id, wishes))
        ended = False
        try:
            while not ended:
                event = await events.get()
                ended = isinstance(event, Finished | Lost)
                if isinstance(event, Finished) and event.outcome == "completed":
                    yield await asyncio.to_thread(Made.of, event, job.out)
                else:
                    yield event
        finally:
            asking.cancel()
            if not ended:
                self._pool.cancel(job.id)
        await self._until_idle_or_exit()

    async def _ask_for_previews(self, job: str, wishes: Any) -> None:
        """Begin and end previews of a job as the front wishes. Stop the job if the front is gone: nobody
        would take its video."""
        shown = False
        while True:
            try:
                wanted = await wishes.wanted.remote(job)
            except actor_error() as error:
                if front_is_gone(error):
                    self._pool.cancel(job)
                    return
                traceback.print_exc()  # the actor is being started again
                wanted = False
            if wanted != shown:
                self._pool.show_previews(job, wanted)
                shown = wanted
            await asyncio.sleep(ASK_SECONDS)

    async def _until_idle_or_exit(self) -> None:
        """End the process if the engine stays down: Ray replaces the replica at once."""
        try:
            await self._until_idle()
        except EngineError:
            traceback.print_exc()
            os._exit(1)

    async def _until_idle(self) -> None:
        """Wait for the engine. Raises EngineError if it stays down."""
        while not self._pool.slots():
            self.check_health()
            self._changed.clear()
            await self._changed.wait()

    def _on_event(self, event: Event) -> None:
        self._changed.set()
        if self._current is not None and getattr(event, "job", None) == self._current[0]:
            self._current[1].put(event)

    def __del__(self) -> None:
        """Called by Ray when the replica is stopped in good order."""
        scratch = getattr(self, "_scratch", None)
        if scratch is not None:
            scratch.remove()


def build(arguments: Mapping[str, Any]) -> Any:
    """The application of RayEngines' fields. Named by the config file, whose options have precedence."""
    from ray import serve

    engines = RayEngines(**arguments)
    options = {**engines.deployment_options(), "max_constructor_retry_count": CONSTRUCTOR_TRIES}
    deployment = serve.deployment(Engine, name=DEPLOYMENT, **options)
    return deployment.bind(dict(arguments))
