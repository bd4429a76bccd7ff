# SPDX-License-Identifier: Apache-2.0
"""The pool of engines on Ray Serve, seen from the front.

Ray chooses replicas and keeps them running. The pool hands over at most one request more than there are
replicas, so that Ray sees when more are wanted, and the front's queue stays the durable one.
"""

import asyncio
import logging
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamp_trt.engine.errors import EngineError, InputError, LampError, OutputError
from lamp_trt.serving.pools.pool import (
    Changed,
    EngineHealth,
    EngineJob,
    Finished,
    Lost,
    OnEvent,
    Preview,
    Slot,
    State,
)
from lamp_trt.serving.ray_pool.cluster import Cluster, Status, ray_errors, start_actor
from lamp_trt.serving.ray_pool.transfer import Made, SentJob
from lamp_trt.serving.ray_pool.wishes import Wishes

log = logging.getLogger("lamp_trt")

POLL_SECONDS = 1.0
LEAVE_SECONDS = 3.0
"""How long cancelled requests may take to end before the connection is closed."""


@dataclass
class _Request:
    """A request to Ray. It goes on after the end of its job while its replica starts the engine again.
    response: None until the job's files are read and it is sent."""

    job: str
    response: Any = None
    previews: bool = False
    cancelled: bool = False
    ended: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.response is not None:
            self.response.cancel()


class RayPool:
    """Engines of a Ray Serve application. Implements pool.Pool.

    A slot is a place for a request, not a certain engine, so its motion is unknown. expect_bundle: digest
    that the engines' bundle must have, None for any.
    """

    def __init__(self, cluster: Cluster, expect_bundle: str | None = None) -> None:
        self._cluster, self._expect_bundle = cluster, expect_bundle
        self._on_event: OnEvent = _ignore
        self._handle: Any = None
        self._wishes: Any = None
        self._max_replicas = 0
        self._status = Status()
        self._ran = False
        self._requests: dict[str, _Request] = {}  # by slot
        self._losses: Counter[str] = Counter()
        self._reason: str | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._watcher = asyncio.create_task(self._watch())

    def slots(self) -> Sequence[Slot]:
        if self._max_replicas == 0 or self._status.failed is not None:
            return []
        places = min(self._status.running + 1, self._max_replicas) - len(self._requests)
        free = [name for name in map(str, range(self._max_replicas)) if name not in self._requests]
        return [Slot(name) for name in free[: max(places, 0)]]

    def run(self, slot: Slot, job: EngineJob) -> None:
        assert slot in self.slots(), f"slot {slot.engine} is taken"
        self._requests[slot.engine] = _Request(job.id)
        task = asyncio.create_task(self._follow(job, slot.engine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, job: str) -> None:
        for request in self._requests.values():
            if request.job == job and not request.ended:
                request.cancel()

    def show_previews(self, job: str, wanted: bool) -> None:
        for request in self._requests.values():
            if request.job == job and not request.ended and request.previews != wanted:
                request.previews = wanted
                self._wishes.want.remote(job, wanted)

    def health(self) -> Sequence[EngineHealth]:
        running = self._status.running
        busy = min(len(self._requests), running)
        waiting: State = "restarting" if self._ran else "starting"
        states: list[State] = ["busy" if place < busy else "idle" for place in range(running)]
        states += [waiting] * self._status.starting
        if self._status.failed is not None:
            states, self._reason = ["down"], self._status.failed
        return [
            EngineHealth(str(index), state, self._losses[str(index)], self._reason)
            for index, state in enumerate(states or [waiting])
        ]

    async def close(self) -> None:
        self._on_event = _ignore
        for request in self._requests.values():
            request.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS)
        for task in (*self._tasks, *([self._watcher] if self._watcher else [])):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._cluster.close)

    async def _watch(self) -> None:
        """Connect, then follow the application's status."""
        try:
            await asyncio.to_thread(self._cluster.open)
            _take_sigterm_back()
            await self._attach()
        except (LampError, ModuleNotFoundError) as error:
            self._see(Status(failed=str(error)))
            return
        while True:
            try:
                self._see(await asyncio.to_thread(self._cluster.status))
            except LampError as error:
                log.warning("%s", error)
                self._reason = str(error)
                self._see(Status())
            await asyncio.sleep(POLL_SECONDS)

    async def _attach(self) -> None:
        """Ask an engine for its bundle, once one runs. Raises InputError for another one than the front's."""
        while (about := await self._about()) is None:
            await asyncio.sleep(POLL_SECONDS)
        if self._expect_bundle not in (None, about["bundle"]):
            raise InputError(
                f"the engines on Ray have the bundle {about['bundle']}, the server {self._expect_bundle}; "
                "deploy the config file of the server's bundle."
            )
        self._handle = self._handle.options(stream=True)
        self._max_replicas = about["max_replicas"]

    async def _about(self) -> Mapping[str, Any] | None:
        """What a replica says of itself; None if none answers yet."""
        try:
            status = await asyncio.to_thread(self._cluster.status)
            if status.running:
                self._handle = await asyncio.to_thread(self._cluster.handle)
                about: Mapping[str, Any] = await self._handle.describe.remote()
                self._wishes = await asyncio.to_thread(start_actor, Wishes)
                await self._wishes.wanted.remote("")  # it takes seconds to start
                return about
            self._see(status)
        except EngineError as error:
            self._wait_after(error)
        except ray_errors() as error:
            self._wait_after(error)
        return None

    def _wait_after(self, error: Exception) -> None:
        self._reason = _first_line(error)
        log.warning("no engine on Ray answers yet: %s", self._reason)

    def _see(self, status: Status) -> None:
        self._ran = self._ran or status.running > 0
        if status == self._status and self._ran:
            return
        if status.failed is not None and self._status.failed is None:
            log.error("no engine on Ray: %s", status.failed)
        elif status.running != self._status.running:
            log.info("%d engines run on Ray", status.running)
        self._status = status
        self._on_event(Changed())

    async def _follow(self, job: EngineJob, slot: str) -> None:
        """Report the events of a request; its end frees the slot."""
        request = self._requests[slot]
        reason = "its replica on Ray ended without a word"
        try:
            async for message in self._messages(job, request):
                if isinstance(message, Made):
                    self._end(slot, await asyncio.to_thread(_keep, message, job))
                elif isinstance(message, Finished | Lost):
                    self._end(slot, message)
                elif not request.ended and (request.previews or not isinstance(message, Preview)):
                    self._on_event(message)
        except asyncio.CancelledError:
            if not request.cancelled:
                raise
        except ray_errors() as error:
            reason = f"a replica on Ray is gone: {_first_line(error)}"
        if not request.ended:
            self._end(slot, Finished(job.id, "cancelled") if request.cancelled else Lost(job.id, reason))
        del self._requests[slot]
        self._on_event(Changed())

    async def _messages(self, job: EngineJob, request: _Request) -> AsyncIterator[Any]:
        """Send a job with its files, and yield what its replica says."""
        try:
            sent = await asyncio.to_thread(SentJob.of, job)
        except OSError as error:
            yield Finished(job.id, "failed", "engine_error", f"its files cannot be read: {error}")
            return
        if request.cancelled:
            return
        request.response = self._handle.make.remote(sent, self._wishes)
        del sent
        async for message in request.response:
            yield message

    def _end(self, slot: str, end: Finished | Lost) -> None:
        self.show_previews(self._requests[slot].job, False)
        self._requests[slot].ended = True
        if isinstance(end, Lost):
            self._losses[slot] += 1
            self._reason = end.reason
            log.warning("%s", end.reason)
        self._on_event(end)


def _keep(made: Made, job: EngineJob) -> Finished:
    """Write what an engine made; the job's end."""
    try:
        made.write(job.out)
    except OutputError as error:
        return Finished(job.id, "failed", "out_of_space", str(error)[:2000])
    except LampError as error:
        return Finished(job.id, "failed", "engine_error", str(error)[:2000])
    return made.finished


def _take_sigterm_back() -> None:
    """Ray's own handler of SIGTERM, in C++, would end the process before it has closed anything."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0][:500]


def _ignore(event: object) -> None:
    """No more events after `close`."""
