# SPDX-License-Identifier: Apache-2.0
"""Networks on ONNX Runtime's CPU provider."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.backend import Array
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.ort_session import bundle_model, new_session


class OnnxRuntimeEngine:
    """One network of a bundle in an ONNX Runtime session on the CPU.

    A session's weights cannot be exchanged, so `set_motion` drops it and builds another: the switch takes the
    time of a session's optimization. If that fails, the next call tries again.
    """

    def __init__(
        self, bundle: Bundle, network: str, *, motion: str | None = None, num_threads: int | None = None
    ) -> None:
        record = bundle.manifest.networks[network]
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self._bundle, self._network, self._num_threads = bundle, network, num_threads
        self._motion = motion
        self._session = self._new_session(motion)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise EngineError(f"{self._network} has no motion since a switch failed; set one.")
        for tensor in self.inputs:
            array = arrays[tensor.name]
            if (array.shape, array.dtype.name) != (tensor.shape, tensor.dtype):
                raise EngineError(
                    f"{self._network}: input {tensor.name} is {array.dtype} {list(array.shape)}, "
                    f"this bundle's engine takes {tensor.dtype} {list(tensor.shape)}."
                )
        names = [tensor.name for tensor in self.outputs]
        try:
            values = self._session.run(names, dict(arrays))
        except Exception as error:  # ONNX Runtime's own exceptions share no other base
            raise EngineError(f"ONNX Runtime failed in {self._network}: {error}") from error
        return dict(zip(names, values, strict=True))

    def set_motion(self, motion: str) -> None:
        if motion != self._motion:
            self._motion = self._session = None  # one live session: the UNet's memory is not needed twice
            self._session = self._new_session(motion)
            self._motion = motion

    def _new_session(self, motion: str | None) -> Any:
        from lamp_trt.engine.ort_graph import use_multi_head_attention

        model = bundle_model(self._bundle, self._network, motion)
        use_multi_head_attention(model)
        return new_session(
            self._bundle,
            self._network,
            model,
            ["CPUExecutionProvider"],
            num_threads=self._num_threads,
        )
