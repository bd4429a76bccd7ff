# SPDX-License-Identifier: Apache-2.0
"""Every form of the LAMP UNet's layers (export/candidates), compared with its default and timed on the GPU.

Hand-written kernels too, which builds leave out until they have won here. A check for each form, so that each
has a row whatever ends the process.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from lamp_trt.benchmarks.proof import gpu, peers
from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.work import Work
from lamp_trt.benchmarks.verify.reference.networks import module_inputs
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import Call, dominant, recorded_calls
from lamp_trt.export.candidates.choice import Measured, Timer, fastest, measure
from lamp_trt.export.candidates.registry import SLOTS, Candidate
from lamp_trt.export.candidates.timing import cuda_timer

LARGEST_CALLS = 2
"""Kinds of calls of a slot that are timed: each form is compiled for each of them, a second or two."""

FIGURES = "candidates"

INPUTS = ("sample", "timestep", "encoder_hidden_states")
"""Of LampUNet.forward."""


class CandidatesProof:
    """figures: `FIGURES` of it gets each form's milliseconds by title, and `forms` the fastest ones."""

    def __init__(self, work: Work, figures: dict[str, Any], timer: Timer | None = None) -> None:
        self.work, self.figures = work, figures
        self._device = torch.device(work.torch_device)
        self._timer = timer or cuda_timer(self._device)
        self._calls: Counter[Call] | None = None
        self._measured: dict[str, list[Measured]] = {slot: [] for slot in SLOTS}
        figures.setdefault(FIGURES, {})

    def checks(self) -> Iterator[Check]:
        for slot in SLOTS:
            for candidate in registry.of_slot(slot):
                yield f"{claim_of(candidate)}, and is timed", partial(self.measure, candidate)
        yield "the fastest forms are known", self.choose

    def measure(self, candidate: Candidate) -> str:
        try:
            candidate.load()
        except ModuleNotFoundError as error:
            raise Unavailable(f"{error.name} is not installed") from error
        calls = dominant(self.calls(), candidate.slot, LARGEST_CALLS)
        (measured,) = measure(calls, (candidate,), self._timer, self._device)
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

    def calls(self) -> Counter[Call]:
        """Of the lean module at the work's sizes, recorded once."""
        if self._calls is None:
            assert self.work.bundle
            unet: Any = peers.module(self.work, "lean")
            unet.to(memory_format=torch.channels_last)  # as in packages
            tensors = module_inputs(unet, self.work.inputs())
            self._calls = recorded_calls(unet, tuple(tensors[name] for name in INPUTS))
            del unet
            gpu.release_cached()
        return self._calls


def claim_of(candidate: Candidate) -> str:
    """The beginning of a form's claim, by which a report finds its row."""
    return f"layer form {candidate.title} gives the default's result"
