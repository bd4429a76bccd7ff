# SPDX-License-Identifier: Apache-2.0
"""A pool of engine processes on this machine, each supervised and started again with a growing delay."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lamp_trt import NO_TELEMETRY
from lamp_trt.serving.pools.pool import (
    Changed,
    EngineHealth,
    EngineJob,
    Finished,
    Lost,
    OnEvent,
    Preview,
    Progress,
    Slot,
    State,
)
from lamp_trt.serving.pools.restarts import DEFAULT_POLICY, RestartPolicy

log = logging.getLogger("lamp_trt")

KILLED_SECONDS = 2.0
"""How long a killed process is waited for."""


class LocalPool:
    """One process for each entry of `engines`. Implements pool.Pool.

    engines: name → settings for the factory. factory: MODULE:FUNCTION, see worker.py.
    """

    def __init__(
        self,
        factory: str,
        engines: Mapping[str, Mapping[str, Any]],
        policy: RestartPolicy = DEFAULT_POLICY,
    ) -> None:
        self._engines = {name: _Engine(name, factory, own, policy) for name, own in engines.items()}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, on_event: OnEvent) -> None:
        for engine in self._engines.values():
            engine.on_event = on_event
            self._tasks.append(asyncio.create_task(engine.supervise(), name=engine.name))

    def slots(self) -> Sequence[Slot]:
        return [
            Slot(engine.name, engine.motion) for engine in self._engines.values() if engine.state == "idle"
        ]

    def run(self, slot: Slot, job: EngineJob) -> None:
        self._engines[slot.engine].run(job)

    def cancel(self, job: str) -> None:
        for engine in self._engines.values():
            if engine.job == job:
                engine.send({"cancel": job})

    def show_previews(self, job: str, wanted: bool) -> None:
        for engine in self._engines.values():
            if engine.job == job:
                engine.send({"previews": job, "wanted": wanted})

    def health(self) -> Sequence[EngineHealth]:
        return [engine.health() for engine in self._engines.values()]

    async def close(self) -> None:
        for engine in self._engines.values():
            engine.on_event = _ignore
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _ignore(event: object) -> None:
    """No more events after `close`."""


class _Engine:
    """One supervised process: its state, its job and its connection."""

    def __init__(self, name: str, factory: str, settings: Mapping[str, Any], policy: RestartPolicy) -> None:
        self.name = name
        self.on_event: OnEvent = _ignore
        self.state: State = "starting"
        self.motion: str | None = None
        self.job: str | None = None
        self._begin = {"factory": factory, "settings": dict(settings)}
        self._policy = policy
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._starts = self._failures = 0
        self._reason: str | None = None
        self._hung = False

    def health(self) -> EngineHealth:
        pid = self._process.pid if self._process else None
        return EngineHealth(self.name, self.state, max(self._starts - 1, 0), self._reason, pid)

    def run(self, job: EngineJob) -> None:
        assert self.state == "idle", f"{self.name} is {self.state}"
        self.state, self.job = "busy", job.id
        self._expect_word()
        paths = {"out": str(job.out), "first_frame": str(job.first_frame) if job.first_frame else None}
        self.send({"run": {**asdict(job), **paths}})

    def send(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def supervise(self) -> None:
        """Keep a process running until cancelled, or until it has failed too often."""
        while True:
            await self._run_once()
            if self._failures >= self._policy.max_failures:
                self._become("down")
                log.error("engine %s stays down after %d failures", self.name, self._failures)
                return
            self._become("restarting")
            delay = self._policy.first_delay * 2 ** (self._failures - 1)
            await asyncio.sleep(min(delay, self._policy.max_delay))

    async def _run_once(self) -> None:
        """Start a process and handle its messages until it ends."""
        self._starts += 1
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = process = _start(theirs)
            reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
            self._become("starting")
            self._hung = False
            self._expect_word()
            self.send(self._begin)
            refused = None
            with contextlib.suppress(ConnectionError):
                async for line in reader:
                    refused = self._handle(json.loads(line)) or refused
                    self._expect_word()
        finally:
            code = await self._stop()
        self._failures += 1
        self._reason = refused or f"its process ended ({_exit_text(code)})"
        if self._hung:
            starting, policy = self.job is None, self._policy
            what = "did not start within" if starting else "made no step for"
            seconds = policy.start_seconds if starting else policy.hang_seconds
            self._reason = f"it {what} {seconds:g} s and was killed"
        log.warning("engine %s (pid %d) is gone: %s", self.name, process.pid, self._reason)
        job, self.job = self.job, None
        self.state = "restarting"
        if job is not None:
            self.on_event(Lost(job, f"engine {self.name}: {self._reason}", self._hung))

    def _expect_word(self) -> None:
        """Kill the process unless it says something in time, if it has something to do."""
        self._drop_alarm()
        limits = {"starting": self._policy.start_seconds, "busy": self._policy.hang_seconds}
        if self.state in limits:
            self._alarm = asyncio.get_running_loop().call_later(limits[self.state], self._kill_hung)

    def _drop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _kill_hung(self) -> None:
        self._hung = True
        if self._process is not None and self._writer is not None:
            self._process.kill()
            self._writer.transport.abort()  # a process that waits for its device outlives SIGKILL

    async def _stop(self) -> int:
        """Close the connection, wait for the process, kill it after a while; its exit code."""
        self._drop_alarm()
        self.motion = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        assert process is not None
        try:
            return await asyncio.to_thread(process.wait, self._policy.stop_seconds)
        except (subprocess.TimeoutExpired, asyncio.CancelledError):
            process.kill()
            return _exit_code(process, self.name)

    def _handle(self, message: Mapping[str, Any]) -> str | None:
        """Handle one message; the reason if the engine refuses to start."""
        match message["event"]:
            case "refused":
                return str(message["message"])
            case "ready":
                self.motion = message["motion"]
                log.info("engine %s is ready (pid %d)", self.name, self._process.pid if self._process else 0)
                self._become("idle")
            case "progress":
                fields = ("job", "stage", "done", "total", "step_seconds")
                self.on_event(Progress(*(message[name] for name in fields)))
            case "preview":
                self.on_event(Preview(*(message[name] for name in ("job", "stage", "step", "webp"))))
            case "finished":
                self.motion, self.job, self._failures = message["motion"], None, 0
                fields = ("job", "outcome", "code", "message", "switched")
                self.state = "idle"
                self.on_event(Finished(*(message.get(name) for name in fields)))  # type: ignore[arg-type]
        return None

    def _become(self, state: State) -> None:
        self.state = state
        self.on_event(Changed())


def _start(connection: socket.socket) -> "subprocess.Popen[bytes]":
    fd = connection.fileno()
    command = [sys.executable, "-m", "lamp_trt.serving.pools.worker", str(fd)]
    environment = {NO_TELEMETRY: "1", **os.environ}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(fd,), env=environment)


def _exit_code(process: "subprocess.Popen[bytes]", name: str) -> int:
    """Of a killed process. One that waits for its device may not end; it is left."""
    try:
        return process.wait(KILLED_SECONDS)
    except subprocess.TimeoutExpired:
        log.error("engine %s (pid %d) was killed and does not end", name, process.pid)
        return -signal.SIGKILL


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
