# SPDX-License-Identifier: Apache-2.0
"""Checks of each network of a bundle on its backend, on equal inputs: against its PyTorch module where the
checkpoint is given, else against its own graph in fp32 on ONNX Runtime.

REFERENCE on the CPU is compared together with any other backend or device, to distinguish a fault of the
graph from one of the engine.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.verify.checks.check import Check, follows, tensor_check
from lamp_trt.benchmarks.verify.checks.limits import (
    ONNX_RUNTIME_YARDSTICK,
    YARDSTICK,
    fp32_limit,
)
from lamp_trt.benchmarks.verify.composed_engine import (
    ComposedEngine,
    HostComposedEngine,
    composed_engine,
    original_inputs,
)
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.benchmarks.verify.network_inputs import bundle_ids, seeded_inputs
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.reference.arithmetic import EXACT, Arithmetic, yardstick
from lamp_trt.benchmarks.verify.reference.networks import prompt_ids, reference_outputs
from lamp_trt.benchmarks.verify.reference.onnx import Fp32OnnxEngine
from lamp_trt.engine.backends.registry import REFERENCE, find_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP, component_of
from lamp_trt.runtime.load import Place

log = logging.getLogger("lamp_trt")

Arrays = Mapping[str, NDArray[Any]]


def reference_place(num_threads: int | None) -> Place:
    """Return the CPU with the backend that is compared together with every other one."""
    return Place(None, REFERENCE.name, num_threads)


def why_not_judged(bundle: Bundle, network: str, place: Place, options: VerifyOptions) -> str | None:
    """Return what is missing to verify a network; None if nothing is."""
    origin = component_of(network).origin
    option = origin.option
    if options.checkpoints.given(origin):
        return None
    if is_reference(place) or not REFERENCE.runs(bundle):
        return f"give {option}"
    if options.computed_in(bundle.network(network)) == "bf16":
        return f"it computes in bf16, which PyTorch is the measure of: give {option}"
    if place.ordinal is not None and bundle.network(network).precision == "fp32":
        return f"it computes in TF32, whose yardstick is PyTorch: give {option}"
    return None


def is_reference(place: Place) -> bool:
    return place.ordinal is None and place.backend == REFERENCE.name


class NetworkProof:
    """Checks of one network at `place`, of the UNet with every motion in question."""

    def __init__(self, bundle: Bundle, network: str, place: Place, options: VerifyOptions) -> None:
        self._bundle, self._network, self._place, self._options = bundle, network, place, options
        self._component = component_of(network)
        self._from_pytorch = options.checkpoints.given(self._component.origin)
        self._reference_place = reference_place(options.num_threads)
        self._engines: dict[Place, ComposedEngine] = {}

    @property
    def motions(self) -> list[str]:
        """Motions to verify with; "" stands for a network without motions."""
        if self._from_pytorch:
            return self._options.checkpoints.motions_of(self._component.origin)
        return list(self._bundle.manifest.motions) if self._network == LAMP.unet else [""]

    def checks(self, before: list[Check]) -> Iterator[Check]:
        """Yield the checks. before: earlier checks, to name causes."""
        places = [self._place]
        if self._from_pytorch and not is_reference(self._place) and REFERENCE.runs(self._bundle):
            places.insert(0, self._reference_place)
        first: tuple[str, Arrays, Arrays] | None = None
        for motion in self.motions:
            log.info("comparing %s %s", self._network, motion)
            inputs = self._inputs(motion)
            exact, own = self._expected(motion, inputs)
            found = [c for c in before if (c.group, c.name, c.motion) == ("weights", self._network, motion)]
            for place in places:
                try:
                    outputs = self._run(place, motion, inputs)
                except EngineError as error:
                    found.append(Check("networks", self._title(place), motion, problem=str(error)))
                else:
                    found += self._judged(place, motion, outputs, exact, own, follows(found))
                    if place is self._place and first is None:
                        first = motion, inputs, outputs
            yield from (check for check in found if check.group == "networks")
        if first and len(self.motions) > 1:
            yield self._shows_again(self._engines[self._place], *first)
        for engine in self._engines.values():
            engine.close()

    def _inputs(self, motion: str) -> Arrays:
        options, bundle = self._options, self._bundle
        prompts = (options.negative_prompt or "", options.prompt)
        ids = partial(bundle_ids, bundle, self._network, prompts)
        tokenizer = self._component.tokenizer
        if self._from_pytorch and tokenizer:
            folder = options.checkpoints.folder(self._component.origin) / tokenizer.folder
            ids = partial(prompt_ids, folder, list(prompts))
        tensors = original_inputs(bundle, self._network)
        return seeded_inputs(tensors, bundle.manifest.sizes, options.seed, ids)

    def _expected(self, motion: str, inputs: Arrays) -> tuple[Arrays, Arrays | None]:
        """Return the outputs in fp32, and the yardstick's where there is one."""
        bundle, network = self._bundle, self._network
        precision = self._options.computed_in(bundle.network(network))
        roughly = yardstick(precision, self._place.ordinal is not None)
        if self._from_pytorch:
            exact = self._pytorch(EXACT, motion, inputs)
            return exact, self._pytorch(roughly, motion, inputs) if roughly else None
        exact = self._fp32_graph(motion).run(inputs)
        if roughly is None:
            return exact, None
        return exact, self._run(self._reference_place, motion, inputs)

    def _pytorch(self, arithmetic: Arithmetic, motion: str, inputs: Arrays) -> Arrays:
        folder = self._options.checkpoints.folder(self._component.origin, motion)
        return reference_outputs(self._network, folder, arithmetic, inputs)

    def _fp32_graph(self, motion: str) -> ComposedEngine:
        def load(network: str, shown: str | None) -> Fp32OnnxEngine:
            threads = self._options.num_threads
            return Fp32OnnxEngine(self._bundle, network, motion=shown, num_threads=threads)

        return HostComposedEngine(self._bundle, self._network, load, motion or None)

    def _run(self, place: Place, motion: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        if place not in self._engines:
            self._engines[place] = composed_engine(self._bundle, self._network, place, motion or None)
        elif motion:
            self._engines[place].set_motion(motion)
        return self._engines[place].run(inputs)

    def _judged(
        self,
        place: Place,
        motion: str,
        outputs: Arrays,
        exact: Arrays,
        own: Arrays | None,
        cause: str,
    ) -> list[Check]:
        return [
            tensor_check(
                "networks",
                self._title(place, name),
                motion,
                distance(outputs[name], expected),
                distance(own[name], expected) if own else None,
                fp32_limit(self._network, is_reference(place)),
                cause or self._suspect(place),
                YARDSTICK if self._from_pytorch else ONNX_RUNTIME_YARDSTICK,
            )
            for name, expected in exact.items()
        ]

    def _suspect(self, place: Place) -> str:
        graph, title = self._bundle.network(self._network).graph, REFERENCE.title
        if is_reference(place):
            return f"{graph} or {title} computes other values: build it again, try another version"
        remedy = "build its engine again" if find_backend(place.backend).build else "try another version"
        return f"{title} computes {graph} correctly, {place} does not: {remedy}"

    def _title(self, place: Place, tensor: str = "") -> str:
        words = [self._network, tensor]
        if not is_reference(self._place):
            against = "" if self._from_pytorch else " against its graph in fp32"
            words.append(f"({place}{against})")
        return " ".join(filter(None, words))

    def _shows_again(self, engine: ComposedEngine, motion: str, inputs: Arrays, outputs: Arrays) -> Check:
        """Check that the first motion, shown after all others, gives the same bits again."""
        title = f"{self._title(self._place)} shown again"
        try:
            engine.set_motion(motion)
            again = engine.run(inputs)
        except EngineError as error:
            return Check("networks", title, motion, problem=str(error))
        differing = sum(int(np.count_nonzero(again[name] != values)) for name, values in outputs.items())
        problem = ""
        if differing:
            problem = "it changed after the other motions were shown: do not switch motions on this backend"
        return Check("networks", title, motion, {"differing values": differing}, problem=problem)
