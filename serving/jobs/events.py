# SPDX-License-Identifier: Apache-2.0
"""Events of jobs, for server-sent events and for requests that wait for a job's end.

Names: "queued", "progress", "completed", "failed", "deleted"; for clients that ask for previews also
"preview" (a picture) and "withdrawn" (which takes all previews of the job back).
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

WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class JobEvent:
    """name: see the module. data: JSON values."""

    name: str
    data: Mapping[str, Any]

    def encoded(self) -> bytes:
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n".encode()


@dataclass(eq=False)
class Subscription:
    """Events of one job for one client, of bounded number: see REPLACED. previews: whether it gets them."""

    previews: bool = False
    shown: bool = False
    """Whether it was given a preview that was not withdrawn."""
    pending: deque[JobEvent] = field(default_factory=deque)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: JobEvent) -> None:
        if event.name == "preview":
            if not self.previews:
                return
            self.shown = True
        if event.name == WITHDRAWN:
            if not self.shown:
                return
            self.shown = False
            self._drop("preview")
        if event.name in REPLACED:
            self._drop(event.name)
        self.pending.append(event)
        self._more.set()

    def _drop(self, name: str) -> None:
        self.pending = deque(event for event in self.pending if event.name != name)

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

    def subscribe(self, job: str, previews: bool = False) -> Subscription:
        subscription = Subscription(previews)
        self._subscriptions[job].add(subscription)
        return subscription

    def unsubscribe(self, job: str, subscription: Subscription) -> None:
        self._subscriptions[job].discard(subscription)
        if not self._subscriptions[job]:
            del self._subscriptions[job]

    def has(self, job: str) -> bool:
        """Whether any client gets events of the job."""
        return job in self._subscriptions

    def wants_previews(self, job: str) -> bool:
        """Whether any client asks for previews of the job."""
        return any(each.previews for each in self._subscriptions.get(job, ()))

    def send(self, job: str, event: JobEvent) -> None:
        for subscription in self._subscriptions.get(job, ()):
            subscription.put(event)
