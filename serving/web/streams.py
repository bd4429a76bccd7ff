# SPDX-License-Identifier: Apache-2.0
"""Replies that notice when their client leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lamp_trt.serving.jobs.events import JobEvent

KEEP_ALIVE_SECONDS = 15.0


async def until_left(request: Request, work: Coroutine[Any, Any, None]) -> bool:
    """Wait for `work`; whether it ended before the client left. The request's body has been read."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """Server-sent events of an iterator. left: called when the client is gone before their end."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[JobEvent], left: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._left = events, left

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        leaving = asyncio.ensure_future(_disconnect(receive))
        ended = False
        try:
            ended = await self._send_events(send, leaving)
        finally:
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving
            if not ended:
                self._left()
        if ended:
            await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Any, leaving: "asyncio.Future[None]") -> bool:
        """Whether all events were sent; False once the client left."""
        next_event: asyncio.Future[JobEvent | None] = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                waiting: set[asyncio.Future[Any]] = {next_event, leaving}
                await asyncio.wait(waiting, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return False
                body = b": waiting\n\n"
                if next_event.done():
                    event = next_event.result()
                    if event is None:
                        return True
                    body = event.encoded()
                    next_event = asyncio.ensure_future(anext(self._events, None))
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            next_event.cancel()
            await asyncio.gather(next_event, return_exceptions=True)


async def _disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
