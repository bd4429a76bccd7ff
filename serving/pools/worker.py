# SPDX-License-Identifier: Apache-2.0
"""The process of one engine: python -m lamp_trt.serving.pools.worker FD

FD is a socket to the pool. Both sides write JSON objects, one a line. The pool begins with `factory`
(MODULE:FUNCTION) and `settings`, its argument; `run`, `cancel` and `previews` follow. The engine answers
"ready", then "progress", "preview" and "finished". It exits at once when the pool closes the socket or dies.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lamp_trt.engine.errors import Cancelled, LampError, OutputError, SafetyError
from lamp_trt.runtime.control import Progress
from lamp_trt.runtime.preview import Preview
from lamp_trt.serving.pools.pool import EngineJob
from lamp_trt.serving.pools.previews import Previews


class Engine(Protocol):
    """What a factory returns. motion: the one that is loaded."""

    @property
    def motion(self) -> str: ...

    def make(
        self, job: EngineJob, progress: Progress, cancel: threading.Event, preview: Preview | None = None
    ) -> None:
        """Write the job's files. Raises Cancelled soon after the event is set, and LampErrors."""


class _Cancels:
    """Cancelled jobs. The reader's thread adds to them, the engine's thread begins and ends a job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: set[str] = set()
        self._running: tuple[str, threading.Event] | None = None

    def add(self, job: str) -> None:
        with self._lock:
            if self._running and self._running[0] == job:
                self._running[1].set()
            else:
                self._early.add(job)

    def begin(self, job: str) -> threading.Event:
        with self._lock:
            event = threading.Event()
            self._running = (job, event)
            if job in self._early:
                event.set()
            self._early.clear()
            return event


class _Steps:
    """Progress messages of one job, at most one for each 50 ms, except for a stage's first and last step."""

    def __init__(self, job: str, send: Callable[..., None]) -> None:
        self._job, self._send = job, send
        self._stage, self._done, self._sent = "", 0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        new_stage = stage != self._stage
        if not (new_stage or done == total or now - self._sent >= 0.05):
            return
        steps = 0 if new_stage else done - self._done
        step_seconds = (now - self._sent) / steps if steps > 0 else None
        self._stage, self._done, self._sent = stage, done, now
        self._send(
            event="progress",
            job=self._job,
            stage=stage,
            done=done,
            total=total,
            step_seconds=step_seconds,
        )


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool closes the socket
    connection = socket.socket(fileno=fd)
    try:
        serve(connection, connection.makefile("rb"))
    finally:  # nothing is closed: the reader's thread holds the lock of `lines`
        if error := sys.exc_info()[1]:
            traceback.print_exception(error)
        os._exit(1)


def serve(connection: socket.socket, lines: BinaryIO) -> None:
    def send(**message: object) -> None:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            os._exit(0)

    begin = json.loads(lines.readline() or b"{}")
    if not begin:
        return
    cancels, previews, jobs = _Cancels(), Previews(send), queue.SimpleQueue[EngineJob]()
    threading.Thread(target=_read, args=(lines, cancels, previews, jobs), daemon=True).start()
    module, _, function = begin["factory"].partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), function)(begin["settings"])
    except LampError as error:
        send(event="refused", message=str(error)[:2000])
        return
    send(event="ready", motion=engine.motion)
    while True:
        job = jobs.get()
        before = engine.motion
        outcome = _outcome(engine, job, _Steps(job.id, send), cancels.begin(job.id), previews.of(job))
        previews.end(job)
        if outcome["outcome"] != "completed":
            for path in (job.out, job.out.with_name(f"{job.out.name}.json")):
                path.unlink(missing_ok=True)
        switched = engine.motion != before
        send(event="finished", job=job.id, motion=engine.motion, switched=switched, **outcome)


def _outcome(
    engine: Engine, job: EngineJob, steps: _Steps, cancel: threading.Event, preview: Preview
) -> Mapping[str, Any]:
    try:
        if cancel.is_set():
            raise Cancelled("cancelled before it began.")
        engine.make(job, steps, cancel, preview)
    except Cancelled:
        return {"outcome": "cancelled"}
    except SafetyError as error:
        return {"outcome": "failed", "code": "content_policy", "message": str(error)[:2000]}
    except OutputError as error:
        return {"outcome": "failed", "code": "out_of_space", "message": str(error)[:2000]}
    except LampError as error:
        return {"outcome": "failed", "code": "engine_error", "message": str(error)[:2000]}
    except FileNotFoundError as error:
        if all(path.exists() for path in job.inputs()):
            raise
        return {"outcome": "failed", "code": "engine_error", "message": f"its files cannot be read: {error}"}
    return {"outcome": "completed"}


def _read(
    lines: BinaryIO, cancels: _Cancels, previews: Previews, jobs: "queue.SimpleQueue[EngineJob]"
) -> None:
    """Take the pool's messages; end the process when there are no more."""
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            message = json.loads(line)
            if "cancel" in message:
                cancels.add(message["cancel"])
            elif "previews" in message:
                previews.want(message["previews"], message["wanted"])
            else:
                fields = message["run"]
                frame = fields["first_frame"]
                fields |= {"out": Path(fields["out"]), "first_frame": Path(frame) if frame else None}
                jobs.put(EngineJob(**fields))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
