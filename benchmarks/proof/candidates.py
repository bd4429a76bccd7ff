# SPDX-License-Identifier: Apache-2.0
"""Every form of the LAMP UNet's layers and every setting of its compiler (export/candidates), compared with
its default and timed on the GPU.

Hand-written kernels too, which builds leave out until they have won here. A check for each form and setting,
so that each has a row whatever ends the process.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from lamp_trt.benchmarks.proof import gpu, peers
from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.work import Work
from lamp_trt.benchmarks.verify.reference.networks import module_inputs
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import Call, dominant, recorded_calls, recorded_products
from lamp_trt.export.candidates.choice import Measured, Timer, fastest, measure
from lamp_trt.export.candidates.registry import SETTINGS, SLOTS, Candidate, Setting
from lamp_trt.export.candidates.settings import Values, concerned, gains, measure_setting
from lamp_trt.export.candidates.timing import cuda_timer

LARGEST_CALLS = 2
"""Kinds of calls of a slot, or of products of a setting, that are timed: each is compiled in every form, a
second or two."""

FIGURES = "candidates"

INPUTS = ("sample", "timestep", "encoder_hidden_states")
"""Of LampUNet.forward."""


class CandidatesProof:
    """figures: `FIGURES` of it gets the milliseconds of each form and setting by title, `forms` and
    `settings` the fastest ones. timer_of: a timer under given settings."""

    def __init__(
        self, work: Work, figures: dict[str, Any], timer_of: Callable[[Values], Timer] | None = None
    ) -> None:
        self.work, self.figures = work, figures
        self._device = torch.device(work.torch_device)
        self._timer_of = timer_of or partial(cuda_timer, self._device)
        self._calls: Counter[Call] | None = None
        self._products: Counter[Call] = Counter()
        self._measured: dict[str, list[Measured]] = {slot: [] for slot in SLOTS}
        figures.setdefault(FIGURES, {})

    def checks(self) -> Iterator[Check]:
        for slot in SLOTS:
            for candidate in registry.of_slot(slot):
                yield f"{claim_of(candidate)}, and is timed", partial(self.measure, candidate)
        yield "the fastest forms are known", self.choose
        for setting in SETTINGS:
            yield claim_of_setting(setting), partial(self.measure_setting, setting)

    def measure(self, candidate: Candidate) -> str:
        try:
            candidate.load()
        except ModuleNotFoundError as error:
            raise Unavailable(f"{error.name} is not installed") from error
        calls = dominant(self.calls(), candidate.slot, LARGEST_CALLS)
        (measured,) = measure(calls, (candidate,), self._timer_of({}), self._device)
        self._measured[candidate.slot].append(measured)
        assert measured.seconds is not None, measured.reason
        self.figures[FIGURES][candidate.title] = 1e3 * measured.seconds
        return f"{1e3 * measured.seconds:.3f} ms for {calls.total()} calls of a step, {len(calls)} kinds"

    def choose(self) -> str:
        """The value of --forms that chooses the fastest forms of the slots whose default was timed."""
        forms = {
            slot: fastest(tuple(rows))
            for slot, rows in self._measured.items()
            if rows and rows[0].name == registry.default_of(slot).name
        }
        if not forms:
            raise Unavailable("no default form was timed")
        self.figures["forms"] = registry.text_of(forms)
        return f"--forms {self.figures['forms']}"

    def measure_setting(self, setting: Setting) -> str:
        """Off and on, with the settings that were found faster before it."""
        self.calls()
        calls = concerned(setting, self._products, LARGEST_CALLS)
        if not calls:
            raise Unavailable("the network has no product that it concerns")
        chosen: dict[str, bool] = self.figures.setdefault("settings", {})
        off, on = measure_setting(setting, calls, self._timer_of, chosen, self._device)
        for measured, value in ((off, False), (on, True)):
            assert measured.seconds is not None, measured.reason
            self.figures[FIGURES][setting.title(value)] = 1e3 * measured.seconds
        chosen[setting.name] = gains(off, on)
        return f"{off}, {on} for {sum(calls.values())} products, {len(calls)} kinds"

    def calls(self) -> Counter[Call]:
        """Of the lean module at the work's sizes, recorded once with its products."""
        if self._calls is None:
            assert self.work.bundle
            unet: Any = peers.module(self.work, "lean")
            unet.to(memory_format=torch.channels_last)  # as in packages
            tensors = module_inputs(unet, self.work.inputs())
            arguments = tuple(tensors[name] for name in INPUTS)
            self._calls = recorded_calls(unet, arguments)
            self._products = recorded_products(unet, arguments)
            del unet
            gpu.release_cached()
        return self._calls


def claim_of(candidate: Candidate) -> str:
    """The beginning of a form's claim, by which a report finds its row."""
    return f"layer form {candidate.title} gives the default's result"


def claim_of_setting(setting: Setting) -> str:
    return f"setting {setting.name} gives the same result, and is timed off and on"
