# SPDX-License-Identifier: Apache-2.0
"""The queue of waiting jobs: first come, first served, except that engines prefer their loaded motion."""

from collections.abc import Sequence
from dataclasses import dataclass

from lamp_trt.serving.pools.pool import Slot

MAX_SKIPPED = 4
"""How many later jobs may be started before the first of the queue because their motion is loaded."""


@dataclass
class _Entry:
    job: str
    motion: str
    skipped: int = 0


class Waiting:
    """Waiting jobs in order. At most MAX_SKIPPED later jobs overtake any of them."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, job: str, motion: str, *, first: bool = False) -> None:
        """first: before all others, for a job that an engine lost."""
        self._entries.insert(0 if first else len(self._entries), _Entry(job, motion))

    def remove(self, job: str) -> bool:
        """Whether the job was waiting."""
        found = next((each for each in self._entries if each.job == job), None)
        if found is not None:
            self._entries.remove(found)
        return found is not None

    def position(self, job: str) -> int | None:
        """How many jobs are before this one; None if it does not wait."""
        return next((place for place, each in enumerate(self._entries) if each.job == job), None)

    def jobs(self) -> list[str]:
        return [each.job for each in self._entries]

    def take(self, slots: Sequence[Slot]) -> tuple[str, Slot] | None:
        """Remove and return the next job to start and its slot; None if there is no job or no slot.

        A job goes to a slot with its motion loaded, the earliest such job first. The first of the queue goes
        to any slot if no job fits one, or once it has been overtaken MAX_SKIPPED times.
        """
        if not self._entries or not slots:
            return None
        by_motion = {slot.motion: slot for slot in reversed(slots)}
        first = self._entries[0]
        chosen = first
        if first.skipped < MAX_SKIPPED:
            chosen = next((each for each in self._entries if each.motion in by_motion), first)
        place = self._entries.index(chosen)
        for each in self._entries[:place]:
            each.skipped += 1
        del self._entries[place]
        return chosen.job, by_motion.get(chosen.motion, slots[0])
