# SPDX-License-Identifier: Apache-2.0
"""The owner of jobs: it stores them, hands them to the pool, and handles what engines report.

Everything runs in one event loop. Jobs that have not ended are also in memory, which is what counts: on a
full disk their changes are stored later.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import OutputError
from lamp_trt.engine.files.output import written
from lamp_trt.serving.jobs.events import WITHDRAWN, Broadcast, JobEvent
from lamp_trt.serving.jobs.fields import VideoFields
from lamp_trt.serving.jobs.metrics import Metrics
from lamp_trt.serving.jobs.store import JobRecord, JobStore, new_id
from lamp_trt.serving.jobs.times import Times
from lamp_trt.serving.jobs.waiting import Waiting
from lamp_trt.serving.pools.pool import (
    Changed,
    EngineJob,
    Event,
    Finished,
    Lost,
    Pool,
    Preview,
    Progress,
)
from lamp_trt.serving.settings import ModelInfo, ServeSettings

log = logging.getLogger("lamp_trt")

MAX_TRIES = 2
"""Engines that a job is started on before it fails as engine_died."""

HOUSEKEEPING_SECONDS = 5.0


class Unavailable(Exception):
    """A job cannot be taken now. code: queue_full or no_engine."""

    def __init__(self, code: Literal["queue_full", "no_engine"], message: str) -> None:
        super().__init__(message)
        self.code = code


class Front:
    """Jobs of one server. `start` comes first, `close` last."""

    def __init__(self, store: JobStore, pool: Pool, model: ModelInfo, settings: ServeSettings) -> None:
        self.store, self.pool, self.model, self.settings = store, pool, model, settings
        self.metrics, self.broadcast, self.waiting = Metrics(), Broadcast(), Waiting()
        self._live: dict[str, JobRecord] = {}
        self._times = Times()
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over the stored jobs: queued ones are queued again, running ones were interrupted."""
        self.store.sweep()
        for job in self.store.unfinished():
            self._live[job.id] = job
            if job.status == "queued":
                self._times.add(job)
                self.waiting.add(job.id, job.motion)
            else:
                self._fail(job, "interrupted", "the server ended while the video was made.")
        await self.pool.start(self._on_event)
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def close(self) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await self.pool.close()
        self.store.close()

    # --- for the HTTP layer ---

    def check_capacity(self) -> None:
        """Raise Unavailable if a new job could not be taken."""
        states = [engine.state for engine in self.pool.health()]
        if all(state == "down" for state in states):
            self.metrics.refused["no_engine"] += 1
            raise Unavailable("no_engine", "no engine is running; see /health.")
        if len(self.waiting) >= self.settings.max_queued:
            self.metrics.refused["queue_full"] += 1
            raise Unavailable("queue_full", f"{len(self.waiting)} videos are waiting; try again later.")

    def create(
        self, fields: VideoFields, frame: NDArray[np.uint8] | None, name: str | None = None
    ) -> JobRecord:
        """Store and queue a job. name: its id, of `new_id`, under which an edit's clip is already stored.
        Raises Unavailable, and OutputError on a full disk."""
        self.check_capacity()
        seed = fields.options.get("seed", secrets.randbits(32))
        options = {**fields.options, "seed": seed, **self._safety()}
        job = JobRecord(
            name or new_id(),
            fields.prompt,
            fields.motion,
            options,
            fields.fps,
            frame is not None,
            time.time(),
            clip=fields.clip,
        )
        if frame is not None:
            self._write_frame(job.id, frame)
        try:
            self.store.add(job)
        except OutputError:
            self.store.remove_files(job.id)
            raise
        self._live[job.id] = job
        self._times.add(job)
        self.waiting.add(job.id, job.motion)
        self._start_jobs()
        return self._live.get(job.id, job)

    def get(self, job: str) -> JobRecord | None:
        return self._live.get(job) or self.store.get(job)

    def progress(self, job: JobRecord) -> int:
        """Percent, 100 only for a completed job."""
        return 100 if job.status == "completed" else self._times.percent(job.id)

    def seconds_left(self) -> Mapping[str, float]:
        """Estimates for queued and running jobs, of those for which one can be given: see Times."""
        running = [job.id for job in self._live.values() if job.status == "in_progress"]
        engines = sum(engine.state in ("idle", "busy") for engine in self.pool.health())
        return self._times.seconds_left(running, self.waiting.jobs(), engines)

    def delete(self, job: JobRecord) -> None:
        """Forget a job: stop it if it runs, and remove its record and files. Raises OutputError if the record
        stays, on a full disk."""
        was_live = self._live.pop(job.id, None) is not None
        waited = self.waiting.remove(job.id)
        if was_live and not waited and job.status == "in_progress":
            self.pool.cancel(job.id)
        if was_live and not job.finished:
            self.metrics.jobs["deleted"] += 1
        self._times.forget(job.id)
        try:
            self.store.delete(job.id)
        finally:
            self._withdraw(job.id)
            self.broadcast.send(job.id, JobEvent("deleted", {"id": job.id}))
            self._tell_positions()

    async def events(self, job: JobRecord, previews: bool = False) -> AsyncIterator[JobEvent]:
        """The state of a job now, then its events up to the last. previews: those too, of which engines make
        none unless somebody asks."""
        subscription = self.broadcast.subscribe(job.id, previews)
        try:
            if previews:
                self.pool.show_previews(job.id, True)
            subscription.put(self._state_event(self.get(job.id) or job))
            async with contextlib.aclosing(subscription.events()) as events:
                async for event in events:
                    yield event
        finally:
            self.broadcast.unsubscribe(job.id, subscription)
            if previews and not self.broadcast.wants_previews(job.id):
                self.pool.show_previews(job.id, False)

    def metrics_text(self) -> str:
        engines = self.pool.health()
        states = Counter({"starting": 0, "idle": 0, "busy": 0, "restarting": 0, "down": 0})
        states.update(engine.state for engine in engines)
        restarts = {engine.name: engine.restarts for engine in engines}
        return self.metrics.text(len(self.waiting), states, restarts)

    # --- events of the pool ---

    def _on_event(self, event: Event) -> None:
        match event:
            case Progress():
                self._on_progress(event)
            case Preview():
                self._on_preview(event)
            case Finished():
                self._on_finished(event)
            case Lost():
                self._on_lost(event)
            case Changed():
                self._fail_without_engines()
        if not isinstance(event, Progress | Preview):
            self._start_jobs()

    def _on_progress(self, event: Progress) -> None:
        if event.step_seconds is not None:
            self.metrics.step.observe(event.step_seconds)
        self._times.report(event)
        job = self._live.get(event.job)
        if job is None or not self.broadcast.has(job.id):
            return
        self.broadcast.send(job.id, self._state_event(job))

    def _on_preview(self, event: Preview) -> None:
        """Pass a preview on to those who ask for it; nothing of it is kept."""
        if event.job in self._live:
            data = {"id": event.job, "stage": event.stage, "step": event.step, "webp": event.webp}
            self.broadcast.send(event.job, JobEvent("preview", data))

    def _withdraw(self, job: str) -> None:
        """Take the previews of a job back that does not become a video."""
        self.broadcast.send(job, JobEvent(WITHDRAWN, {"id": job}))

    def _on_finished(self, event: Finished) -> None:
        self.metrics.switches += event.switched
        job = self._live.get(event.job)
        if job is None:
            self._forget(event.job)
        elif event.outcome == "completed":
            self.store.remove_input(job.id)
            seconds = time.time() - (job.started_at or time.time())
            self.metrics.making.observe(seconds)
            self._times.finished(job.id, seconds)
            self._end(job, "completed")
        elif event.outcome == "failed":
            self._fail(job, event.code or "engine_error", event.message or "the engine failed.")
        else:
            self._fail(job, "cancelled", "the job was cancelled.")

    def _on_lost(self, event: Lost) -> None:
        job = self._live.get(event.job)
        if job is None:
            self._forget(event.job)
        elif event.hung:
            self._fail(job, "engine_hung", f"{event.reason}.")
        elif job.tries < MAX_TRIES:
            self.metrics.retries += 1
            self._times.restart(job.id)
            self._withdraw(job.id)
            self.store.remove_output(job.id)
            self._save(replace(job, status="queued", started_at=None))
            self.waiting.add(job.id, job.motion, first=True)
        else:
            self._fail(job, "engine_died", f"the engine died {job.tries} times on this job: {event.reason}.")

    def _fail_without_engines(self) -> None:
        if any(engine.state != "down" for engine in self.pool.health()):
            return
        for name in self.waiting.jobs():
            self.waiting.remove(name)
            job = self._live[name]
            code = "engine_died" if job.tries else "no_engine"
            self._fail(job, code, "no engine is running any more.")

    def _start_jobs(self) -> None:
        started = False
        while taken := self.waiting.take(self.pool.slots()):
            started = True
            job, slot = self._live[taken[0]], taken[1]
            now = time.time()
            if job.tries == 0:
                self.metrics.waiting.observe(now - job.created_at)
            job = self._save(replace(job, status="in_progress", started_at=now, tries=job.tries + 1))
            frame = self.store.first_frame(job.id) if job.has_frame else None
            self.pool.run(
                slot,
                EngineJob(
                    job.id,
                    job.prompt,
                    job.motion,
                    job.options,
                    job.fps,
                    self.store.video(job.id),
                    frame,
                    self._clip(job),
                ),
            )
            if self.broadcast.wants_previews(job.id):
                self.pool.show_previews(job.id, True)
            self.broadcast.send(job.id, self._state_event(job))
        if started:
            self._tell_positions()

    # --- records ---

    def _end(self, job: JobRecord, status: Literal["completed", "failed"], **changes: Any) -> None:
        ended = self._save(replace(job, status=status, finished_at=time.time(), **changes))
        self._times.forget(job.id)
        self.metrics.jobs[ended.error["code"] if ended.error else "completed"] += 1
        self.broadcast.send(job.id, self._state_event(ended))

    def _fail(self, job: JobRecord, code: str, message: str) -> None:
        self.store.remove_files(job.id)
        self._withdraw(job.id)
        self._end(job, "failed", error={"code": code, "message": message})

    def _save(self, job: JobRecord) -> JobRecord:
        """Store a live job. On a full disk it stays in memory, and housekeeping tries again."""
        self._live[job.id] = job
        try:
            self.store.change(job)
        except OutputError as error:
            log.error("%s: %s It is kept in memory.", job.id, error)
        else:
            if job.finished:
                del self._live[job.id]
        return job

    def _forget(self, job: str) -> None:
        """Remove the files of a deleted job whose engine is done with them."""
        self.store.remove_files(job)

    def _write_frame(self, job: str, frame: NDArray[np.uint8]) -> None:
        with written(self.store.first_frame(job)) as (partial,):
            np.save(partial, frame, allow_pickle=False)

    def _clip(self, job: JobRecord) -> Mapping[str, Any] | None:
        """The clip of an edit, as EngineJob has it."""
        if job.clip is None:
            return None
        given = {name: job.clip[name] for name in ("start", "every")}
        name = f"{job.clip['video']}.mp4" if job.clip["video"] else "clip"
        return {**given, "name": name, "path": str(self.store.clip(job.id))}

    def _safety(self) -> Mapping[str, Any]:
        return {"safety": self.model.safety if self.model.has_checker else "off"}

    def _state_event(self, job: JobRecord, left: Mapping[str, float] | None = None) -> JobEvent:
        """The state of a job as an event. left: what `seconds_left` gives, if it is known."""
        name = {"in_progress": "progress"}.get(job.status, job.status)
        data: dict[str, Any] = {"id": job.id, "progress": self.progress(job)}
        if job.status == "queued":
            data["queue_position"] = self.waiting.position(job.id)
        if not job.finished:
            data |= self._times.at(job.id)
            left = self.seconds_left() if left is None else left
            data["seconds_left"] = rounded(left.get(job.id))
        if job.error:
            data["error"] = job.error
        return JobEvent(name, data)

    def _tell_positions(self) -> None:
        left = self.seconds_left()
        for name in self.waiting.jobs():
            if self.broadcast.has(name):
                self.broadcast.send(name, self._state_event(self._live[name], left))

    async def _keep_house(self) -> None:
        """Remove expired jobs, and store what could not be stored."""
        while True:
            await asyncio.sleep(min(HOUSEKEEPING_SECONDS, self.settings.job_ttl / 2))
            for job in [each for each in self._live.values() if each.finished]:
                self._save(job)
            for name in self.store.expired(time.time() - self.settings.job_ttl):
                try:
                    self.store.delete(name)
                except OutputError as error:
                    log.error("%s has expired and is removed later: %s", name, error)
            self._tell_positions()  # and the time that is left


def rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)
