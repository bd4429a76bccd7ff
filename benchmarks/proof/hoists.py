# SPDX-License-Identifier: Apache-2.0
"""Gain and cost of each hoist of a UNet on a GPU, in the runtime's own loop.

The plain form stays loaded, and each other form takes turns with it, so that a GPU that grows warm slows
both. A hoist is kept only where its loop, including the work once a prompt, is no slower than the plain one.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.unet import LoopTime, UnetProof, yardstick
from lamp_trt.benchmarks.proof.work import Work
from lamp_trt.benchmarks.verify.checks.limits import YARDSTICK
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.precompute import HOISTS, hoisted_from

COST = 0.01
"""Share by which a loop may be slower than the plain form's and still count as equal: the resolution of
timing."""

TURNS = 6
"""Loops of each form, an even number: who goes first alternates."""

Row = dict[str, Any]


class HoistsProof:
    """One UNet on one backend.

    table     a row for each form is added to it, the plain one's first
    together  leave out the forms with one hoist each, which take a compilation each
    """

    def __init__(self, work: Work, backend: str, table: list[Row], *, together: bool = False) -> None:
        self.work, self.backend, self.table = work.hoisting(()), backend, table
        hoists = hoisted_from(work.subject.network, tuple(HOISTS))
        alone = () if together else tuple((name,) for name in hoists)
        self.forms = [work.hoisting(hoist) for hoist in (hoists, *alone)]
        self._plain = UnetProof(self.work, backend)
        self._form: tuple[UnetProof, Row] | None = None

    def checks(self) -> Iterator[Check]:
        """Yield the checks of all hoists of this UNet together, then of each alone."""
        title = self.work.subject.title
        yield f"{self.backend}: {title} loads in its plain form", self.load_plain
        for work in self.forms:
            of = f"{self.backend}: {title} with {work.form} hoisted"
            yield f"{of} gives the plain form's result", partial(self.parity, work)
            yield f"a hoist costs nothing, at most {COST:.0%} of a loop: {of}", self.cost
        yield f"{self.backend}: {title} in its plain form gives its memory back", self._plain.close

    def load_plain(self) -> str:
        self._plain.load()
        yardstick(self.work)  # needs memory that the other forms will take
        self._times([self._plain])  # warms the GPU up before the timed loops
        time = LoopTime.median(self._times([self._plain])[0])
        return json.dumps(self._add_row(self._plain, **asdict(time)))

    def parity(self, work: Work) -> str:
        """Compare the form with the plain one, and keep it loaded for `cost`. Errors of both forms'
        precision may add up; latents have no limit, since guidance and steps amplify rounding."""
        plain = self._plain.noise_pred()
        self._let_go()
        form = UnetProof(work, self.backend)
        form.load()
        row = self._add_row(form)
        self._form = form, row
        ours, own = distance(form.noise_pred(), plain), yardstick(work)
        latents = distance(form.latents(), self._plain.latents())
        row |= {
            "rel_l2_to_plain": ours.rel_l2,
            "pytorch_rel_l2": own,
            "latents_rel_l2_to_plain": latents.rel_l2,
        }
        limit = YARDSTICK * own
        assert ours.finite, "noise_pred is not finite"
        assert latents.finite, "latents are not finite"
        assert ours.rel_l2 <= limit, f"{row}, limit {limit:.2e}"
        return json.dumps(row)

    def cost(self) -> str:
        """Time the form that `parity` loaded, and close it."""
        if self._form is None:
            raise Unavailable("it did not load")
        form, row = self._form
        try:
            plain, ours = (LoopTime.median(times) for times in self._times([self._plain, form]))
            row["first_once_ms"] = form.loop_time(first=True).once_ms
        finally:
            self._let_go()
        row |= asdict(ours) | {f"plain_{name}": value for name, value in asdict(plain).items()}
        row["step_ratio"] = ours.step_ms / plain.step_ms
        row["loop_ratio"] = ours.loop_ms / plain.loop_ms
        told = (
            f"the loop takes {row['loop_ratio']:.4f} of the plain form's time "
            f"({ours.loop_ms:.1f} ms, {plain.loop_ms:.1f} ms), a step {row['step_ratio']:.4f}"
        )
        assert row["loop_ratio"] <= 1 + COST, told
        return told

    def _times(self, proofs: list[UnetProof]) -> list[list[LoopTime]]:
        """Return times of loops in turns, by proof."""
        times: list[list[LoopTime]] = [[] for _ in proofs]
        for turn in range(TURNS):
            order = range(len(proofs)) if turn % 2 == 0 else reversed(range(len(proofs)))
            for index in order:
                times[index].append(proofs[index].loop_time())
        return times

    def _add_row(self, proof: UnetProof, **figures: float) -> Row:
        form = proof.work
        row = {"network": form.subject.network, "backend": self.backend, "form": form.form}
        self.table.append(row | form.results[self.backend] | figures)
        return self.table[-1]

    def _let_go(self) -> None:
        if self._form is not None:
            self._form[0].close()
            self._form = None
