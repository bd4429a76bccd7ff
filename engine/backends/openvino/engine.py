# SPDX-License-Identifier: Apache-2.0
"""Networks on OpenVINO's CPU plugin."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from lamp_trt.engine.backends.contract import Array, BaseEngine, check_arrays
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.backends.openvino.angles import take_angles_out
from lamp_trt.engine.backends.openvino.graph import Graph, network_graph
from lamp_trt.engine.backends.openvino.library import compile_graph, explained, shared_tensor
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.graph.model import shared_file
from lamp_trt.engine.networks import IOTensor

_SLICE_MS = 100
"""Between looks at signals while a network runs."""

_SHORT_S = 0.02
"""A network whose last run took less is not interrupted: to wait for another thread costs 30 us, a fifth of a
small text encoder."""


class OpenVinoEngine(BaseEngine):
    """One network of a bundle as a compiled model on the CPU.

    Weights are constants over the mapped files; compiling makes one copy of them in the layout and precision
    of the kernels. The motion's tensors are inputs over the mapped motion, so that a switch takes
    milliseconds and no memory. A motion whose shared tensors differ is compiled again; if that fails, the
    next `set_motion` tries again. precision: the arithmetic. Raises EngineError if the graph does not load.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        *,
        precision: CpuPrecision,
        motion: str | None = None,
        num_threads: int | None = None,
        profile: bool = False,
    ) -> None:
        record = bundle.network(network)
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self._bundle, self._network = bundle, network
        self._precision, self._num_threads, self._profile = precision, num_threads, profile
        self._motion: str | None = None
        self._motion_data: Mapping[str, Array] = {}
        self._graph: Graph | None = None
        self._request: Any = None
        self._last_run_s = math.inf
        self._angles: Any = None
        self._places: list[tuple[str, Array]] = []
        self._angle_names: list[str] = []
        if motion is None:
            self._load(None)
        else:
            self.set_motion(motion)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        self.require_usable()
        if self._request is None:
            raise EngineError(f"{self._network} has no motion since a switch failed; set one.")
        check_arrays(self._network, self.inputs, arrays)
        for name, place in self._places:
            np.copyto(place, arrays[name])
        try:
            if self._angles:
                self._angles.infer()
                for name in self._angle_names:
                    self._request.set_tensor(name, self._angles.get_tensor(name))
            self._infer()
            values = {t.name: np.array(self._request.get_tensor(t.name).data) for t in self.outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed in {self._network}: {explained(error)}") from error
        return values

    def set_motion(self, motion: str) -> bool:
        self.require_usable()
        if motion == self._motion:
            return False
        shown = self._motion
        if shown is None or shared_file(self._bundle, motion) != shared_file(self._bundle, shown):
            self._drop()  # one live model: not twice the UNet's memory
            self._load(motion)
        self._show(motion)
        return False

    def profile(self) -> Sequence[Any]:
        """ov.ProfilingInfo of the nodes of the latest run, of an engine that was loaded with `profile`."""
        self.require_usable()
        infos: Sequence[Any] = self._request.profiling_info
        return infos

    def close(self) -> None:
        self.unusable = f"{self._network} was closed."
        self._drop()

    def _infer(self) -> None:
        """Run and wait. Python handles signals meanwhile unless the run is short; what a handler raises stops
        the run."""
        start = time.monotonic()
        if self._last_run_s < _SHORT_S:
            self._request.infer(share_outputs=True)
        else:
            self._run_and_look_at_signals()
        self._last_run_s = time.monotonic() - start

    def _run_and_look_at_signals(self) -> None:
        try:
            self._request.start_async()
            while not self._request.wait_for(_SLICE_MS):
                pass
        except BaseException:
            self._request.cancel()
            self._wait_for_the_end()
            raise

    def _wait_for_the_end(self) -> None:
        with suppress(RuntimeError):  # says that the run was cancelled
            self._request.wait()

    def _load(self, motion: str | None) -> None:
        precision = self._precision
        widen = precision == "fp32" and self._bundle.network(self._network).precision == "bf16"
        graph = network_graph(self._bundle, self._network, motion, widen=widen)
        what = f"{self._network} of {self._bundle.path}"
        angles = take_angles_out(graph.model) if precision == "bf16" else None
        if angles is not None:
            self._angles = compile_graph(angles, what, "fp32", 1).create_infer_request()
        compiled = compile_graph(graph.model, what, precision, self._num_threads, PERF_COUNT=self._profile)
        graph.forget_weights()
        self._graph, self._request = graph, compiled.create_infer_request()
        self._connect(what)

    def _connect(self, what: str) -> None:
        """Find out where the models take their inputs. EngineError for an input that none takes."""
        requests = [request for request in (self._angles, self._request) if request]
        self._places = [
            (tensor.name, request.get_tensor(tensor.name).data)
            for request in requests
            for tensor in self.inputs
            if tensor.name in _names(request.model_inputs)
        ]
        lost = {tensor.name for tensor in self.inputs} - {name for name, _ in self._places}
        if lost:
            self._drop()
            raise EngineError(f"OpenVINO's {what} takes no {', '.join(sorted(lost))}: report it.")
        if self._angles:
            self._angle_names = sorted(
                _names(self._angles.model_outputs) & _names(self._request.model_inputs)
            )

    def _show(self, motion: str) -> None:
        assert self._graph is not None
        raw = read_weight_file(self._bundle.motion_path(motion)).raw()
        data = {name: raw[name] for name in self._graph.motion}
        for name, (shape, element_type) in self._graph.motion.items():
            self._request.set_tensor(name, shared_tensor(data[name], shape, element_type))
        self._motion_data, self._motion = data, motion

    def _drop(self) -> None:
        self._request = self._angles = self._graph = self._motion = None
        self._places, self._motion_data = [], {}


def _names(ports: Any) -> set[str]:
    """All names of inputs or outputs. One has several where a cast beside it was found to do nothing, and
    `any_name` is then any of them."""
    return {name for port in ports for name in port.names}
