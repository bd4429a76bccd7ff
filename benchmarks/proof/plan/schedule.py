# SPDX-License-Identifier: Apache-2.0
"""Which part runs in which call of a lent machine, and how many seconds each may take."""

from dataclasses import dataclass, replace

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP, SDXL

KILL_AFTER_S = 5
"""Between the request to end and the kill: what a part needs to write its rows."""

ENVIRONMENT_S, FACTS_S, REPORT_S = 40, 15, 10
REPORT_KILL_S = 1
"""Limits of what every call does: installing wheels, looking at the machine, and, after each part, the report
of all parts so far, written to where it comes back."""

RESERVE_S = 15
"""Of each call, for the shell and the start of the machine's programs."""


@dataclass(frozen=True)
class Step:
    """A part as a call runs it, or the wait for the preparation.

    arguments     after the part's name
    least, most   seconds below which it shows nothing, and beyond which it has nothing to do
    limit_s       seconds until it is asked to end
    """

    part: str
    least: int
    most: int
    arguments: tuple[str, ...] = ()
    limit_s: int = 0

    @property
    def cost_s(self) -> int:
        """Seconds that it may take of a call, in all."""
        return self.limit_s + KILL_AFTER_S + REPORT_S + REPORT_KILL_S


WAIT = "wait"
"""The step that gives the detached preparation the rest of a call."""

DETACHED = (LAMP.unet, SDXL.unet, "whole")
"""Subjects of the detached preparation: the UNets at once, then every network."""

PEER_MODES = ("--mode", "eager", "--mode", "compile")
"""Not max-autotune: 5 to 15 minutes by estimate."""

BUSY = ("--no-timings",)
"""Of kernels while the preparation has the GPU too."""

MEASUREMENTS = (
    Step("kernels", 20, 40),
    Step("unet", 60, 130),
    Step("profile", 40, 70),
    Step("candidates", 60, 110),
    Step("sdxl", 50, 80, PEER_MODES[:2]),
    Step("peers", 60, 110, PEER_MODES),
    Step("pipeline", 120, 420),
    Step("hoists", 420, 420, ("--together",)),
)
"""In order of worth, on an idle GPU. Of the kernels what the first call left, and their times."""


@dataclass(frozen=True)
class Call:
    number: int
    steps: tuple[Step, ...]

    @property
    def sum_s(self) -> int:
        return (
            ENVIRONMENT_S + FACTS_S + 2 * KILL_AFTER_S + RESERVE_S + sum(step.cost_s for step in self.steps)
        )


@dataclass(frozen=True)
class Schedule:
    """left_out: measurements that there is no time for."""

    calls: tuple[Call, ...]
    left_out: tuple[str, ...]


def schedule(minutes: float, call_minutes: float) -> Schedule:
    """As many whole calls as fit into `minutes`. The first prepares and checks kernels; the others measure.
    InputError if a call is too short for anything."""
    number = int(minutes // call_minutes) if call_minutes > 0 else 0
    if number < 1:
        raise InputError(f"--minutes is {minutes:g}: give at least --call-minutes, {call_minutes:g}.")
    room = [int(60 * call_minutes) - Call(0, ()).sum_s for _ in range(number)]
    first = [Step("kernels", 60, 200, BUSY), Step(WAIT, 5, 10_000)]
    groups: list[list[Step]] = [list(first), *([] for _ in range(number - 1))]
    if number == 1:
        groups[0] = [Step("kernels", 60, 90, BUSY), Step(WAIT, 5, 120)]
    _require_room(groups[0], room[0], call_minutes)
    waiting = list(MEASUREMENTS)
    start = min(1, number - 1)
    for index in range(start, number):
        cost = _least if index == number - 1 else _most  # only the last call is filled to the brim
        while waiting and cost([*groups[index], waiting[0]]) <= room[index]:
            groups[index].append(waiting.pop(0))
    calls = tuple(
        Call(index, tuple(_shared(group, seconds)))
        for index, (group, seconds) in enumerate(zip(groups, room, strict=True), 1)
        if group
    )
    return Schedule(calls, tuple(step.part for step in waiting))


def _least(steps: list[Step]) -> int:
    return sum(replace(step, limit_s=step.least).cost_s for step in steps)


def _most(steps: list[Step]) -> int:
    return sum(replace(step, limit_s=step.most).cost_s for step in steps)


def _require_room(steps: list[Step], seconds: int, call_minutes: float) -> None:
    if _least(steps) > seconds:
        needed = (_least(steps) + Call(0, ()).sum_s) / 60
        raise InputError(f"--call-minutes is {call_minutes:g}: a call needs at least {needed:.1f}.")


def _shared(steps: list[Step], seconds: int) -> list[Step]:
    """The least for each, and of what is left as much as each can use, the first ones first in proportion."""
    spare = seconds - _least(steps)
    limits = [step.least for step in steps]
    wanted = [step.most - step.least for step in steps]
    for index, (step, want) in enumerate(zip(steps, wanted, strict=True)):
        rest = sum(min(w, seconds) for w in wanted[index:])
        share = want if step.part == WAIT or rest == 0 else spare * min(want, seconds) // rest
        given = max(0, min(want, share, spare))
        limits[index] += given
        spare -= given
    return [replace(step, limit_s=limit) for step, limit in zip(steps, limits, strict=True)]
