# SPDX-License-Identifier: Apache-2.0
"""The choice of the fastest form of each slot, by comparing and timing all on the network's own calls."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import Call, dominant
from lamp_trt.export.candidates.registry import Candidate

log = logging.getLogger("lamp_trt")

MOST_CALLS = 4
"""Kinds of calls of a slot that are timed. Each form is compiled for each kind: a second or two."""

Form = Callable[..., Tensor]
Timer = Callable[[Form, tuple[Any, ...]], tuple[float, Tensor]]
"""(form, arguments) → seconds of a call, and its result. Raises if the form does not run."""


@dataclass(frozen=True)
class Measured:
    """One form on all timed calls of its slot. seconds: None if it was dropped, for `reason`."""

    slot: str
    name: str
    seconds: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} dropped ({self.reason})" if self.seconds is None else self._time()

    def _time(self) -> str:
        return f"{self.name} {1e3 * (self.seconds or 0):.3f} ms"


@dataclass(frozen=True)
class Choice:
    """forms: the fastest form of each timed slot. measured: all of them, as they were timed."""

    forms: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()

    @property
    def text(self) -> str:
        return registry.text_of(self.forms)

    @property
    def measurements(self) -> str:
        return in_one_line(self.measured)


def in_one_line(measured: Iterable[Measured]) -> str:
    """Times and reasons of all forms, by slot."""
    slots: dict[str, list[str]] = {}
    for row in measured:
        slots.setdefault(row.slot, []).append(str(row))
    return "; ".join(f"{slot}: {', '.join(rows)}" for slot, rows in slots.items())


def choose(calls: Mapping[Call, int], timer: Timer, device: torch.device) -> Choice:
    """The fastest form of every slot that `calls` name, over all its timed calls together.

    A form that fails, or whose result is too far from the default's, is dropped with a reason. The default
    stays if it is not slower, or fails itself.
    """
    forms: dict[str, str] = {}
    rows: list[Measured] = []
    for slot in registry.SLOTS:
        timed_calls = dominant(calls, slot, MOST_CALLS)
        if timed_calls:
            measured = tuple(measure(timed_calls, registry.timed(slot), timer, device))
            rows += measured
            forms[slot] = fastest(measured)
    choice = Choice(forms, tuple(rows))
    if rows:
        log.info("layer forms: %s; measured %s", choice.text, choice.measurements)
    return choice


def fastest(measured: tuple[Measured, ...]) -> str:
    """The form with the least time, the earlier one of equals; the first, the default, if that was dropped:
    then nothing is known to be sound."""
    if measured[0].seconds is None:
        return measured[0].name
    timed = [m for m in measured if m.seconds is not None]
    return min(timed, key=lambda m: m.seconds or 0.0).name


def measure(
    calls: Mapping[Call, int], candidates: tuple[Candidate, ...], timer: Timer, device: torch.device
) -> Iterator[Measured]:
    """Yield each candidate's total time over `calls`."""
    for candidate in candidates:
        yield _measured(calls, candidate, timer, device)


def _measured(
    calls: Mapping[Call, int], candidate: Candidate, timer: Timer, device: torch.device
) -> Measured:
    seconds, reason = total_time(
        calls,
        timer,
        device,
        form=lambda _: candidate.load(),
        default=lambda call: registry.default_of(call.slot).load(),
        fp32_rel_l2=candidate.fp32_rel_l2,
    )
    if reason:
        log.info("layer form %s is dropped: %s", candidate.title, reason)
    return Measured(candidate.slot, candidate.name, seconds, reason)


def total_time(
    calls: Mapping[Call, int],
    timer: Timer,
    device: torch.device,
    form: Callable[[Call], Form],
    default: Callable[[Call], Form],
    fp32_rel_l2: float = registry.FP32_REL_L2,
) -> tuple[float | None, str]:
    """Seconds of all calls in one form and "", or None and the reason why it is dropped.

    form, default: functions of a call. fp32_rel_l2: limit of the distance between their results in fp32.
    """
    total = 0.0
    for call, count in calls.items():
        try:
            values = call.values(device)
            seconds, result = timer(form(call), values)
            reason = disagreement(default(call), values, result, fp32_rel_l2)
        except Exception as error:  # noqa: BLE001 (compilers raise anything; the reason is kept)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if reason:
            return None, reason
        total += count * seconds
    return total, ""


def disagreement(default: Form, values: tuple[Any, ...], ours: Tensor, fp32_rel_l2: float) -> str:
    """Why `ours`, a form's result of `values`, is no other rounding of the default's; "" if it is."""
    exact, own, dtype = default_results(default, values)
    if (ours.shape, ours.dtype) != (exact.shape, dtype):
        return f"it returns {ours.dtype} {tuple(ours.shape)}, not {dtype} {tuple(exact.shape)}"
    limit = fp32_rel_l2 if dtype == torch.float32 else registry.YARDSTICK * own
    distance = rel_l2(ours, exact)
    return "" if distance <= limit else f"it is {distance:.1e} from the default in fp32, limit {limit:.1e}"


def default_results(default: Form, values: tuple[Any, ...]) -> tuple[Tensor, float, torch.dtype]:
    """The default's result in fp32 from the same values, its own distance to that, and its dtype."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = default(*(v.float() if isinstance(v, Tensor) else v for v in values))
        own = default(*values)
    return exact, rel_l2(own, exact), own.dtype


def rel_l2(ours: Tensor, exact: Tensor) -> float:
    """Relative L2 distance; infinity where `ours` is not finite."""
    apart = (ours.double() - exact.double()).norm() / exact.double().norm()
    return float(apart) if bool(torch.isfinite(ours).all()) else float("inf")
