# SPDX-License-Identifier: Apache-2.0
"""Events of jobs for clients: server-sent events, and whoever waits for a job's end.

Names: "queued", "progress", "completed", "failed", "deleted". "preview" (a picture) and "withdrawn" (which
takes all previews of a job back) have their place here, but nothing sends them yet.
"""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

LAST = frozenset(("completed", "failed", "deleted"))
"""Events after which a job has no more."""

REPLACED = frozenset(("queued", "progress", "preview"))
"""Events that a newer one of the same name makes worthless for a client that reads slowly."""


@dataclass(frozen=True)
class JobEvent:
    """name: see the module. data: JSON values."""

    name: str
    data: Mapping[str, Any]

    def encoded(self) -> bytes:
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n".encode()


@dataclass(eq=False)
class Subscription:
    """Events of one job for one client, of bounded number: see REPLACED."""

    pending: deque[JobEvent] = field(default_factory=deque)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: JobEvent) -> None:
        if event.name in REPLACED and self.pending and self.pending[-1].name == event.name:
            self.pending.pop()
        self.pending.append(event)
        self._more.set()

    async def events(self) -> AsyncGenerator[JobEvent, None]:
        """The events, up to the last one of the job."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self.pending:
                event = self.pending.popleft()
                yield event
                if event.name in LAST:
                    return


class Broadcast:
    """Subscriptions of all jobs."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._subscriptions)

    def subscribe(self, job: str) -> Subscription:
        subscription = Subscription()
        self._subscriptions[job].add(subscription)
        return subscription

    def unsubscribe(self, job: str, subscription: Subscription) -> None:
        self._subscriptions[job].discard(subscription)
        if not self._subscriptions[job]:
            del self._subscriptions[job]

    def send(self, job: str, event: JobEvent) -> None:
        for subscription in self._subscriptions.get(job, ()):
            subscription.put(event)
