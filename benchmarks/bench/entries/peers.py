# SPDX-License-Identifier: Apache-2.0
"""PyTorch baselines, in the same run and on the same inputs: eager with SDPA, and torch.compile.

The LAMP UNet is run in the official formulation and as the lean modules, which are exported. Text
encoders, VAEs and SDXL's UNet are transformers' and diffusers' own modules.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamp_trt.benchmarks.bench.entries.ceilings import torch_seconds
from lamp_trt.benchmarks.bench.harness import Entry, Outputs
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP, NETWORKS, SDXL, component_of
from lamp_trt.engine.torch_threads import torch_threads

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPILED = (LAMP.unet, SDXL.unet)
"""Networks that torch.compile is measured on; the others run once a video."""

HELD_PER_WEIGHT = 1.5


class Peers:
    """PyTorch's modules for the networks whose checkpoints are given; none without --full."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._expected = cache(self._reference)

    def given(self, network: str) -> bool:
        if not self._subject.options.full or not self._subject.options.compares_with_pytorch:
            return False
        # The networks that compute inputs of a UNet have no peers: it is compared whole.
        if network not in NETWORKS or not self._subject.options.checkpoints.given(
            component_of(network).origin
        ):
            return False
        return network != LAMP.unet or self._motion in self._subject.options.checkpoints.motions

    def reference(self, network: str) -> tuple[Callable[[], Outputs], str] | None:
        """Return the expected outputs of a network on its plain inputs, computed once, in fp32 on the CPU,
        and their source; None without a checkpoint."""
        if not self.given(network):
            return None
        return partial(self._expected, network), "PyTorch fp32, official formulation"

    def entries(self) -> list[Entry]:
        entries = []
        for network in filter(self.given, self._subject.networks):
            entries.append(self.entry(network, "PyTorch eager", lean=False, compiled=False))
            if network == LAMP.unet:
                entries.append(self.entry(network, "PyTorch eager, lean", lean=True, compiled=False))
            if network in COMPILED:
                entries.append(self.entry(network, "torch.compile", lean=False, compiled=True))
                if network == LAMP.unet:
                    entries.append(self.entry(network, "torch.compile, lean", lean=True, compiled=True))
        return entries

    @property
    def _motion(self) -> str:
        return self._subject.motion_of(LAMP.unet) or ""

    def entry(self, network: str, backend: str, *, lean: bool, compiled: bool) -> Entry:
        on_host = self._subject.ordinal is None
        reference = self.reference(network) if on_host else None
        return Entry(
            name=network,
            group="peers",
            backend=backend,
            setup=partial(self._setup, network, lean, compiled),
            clock="wall" if on_host else "stream",
            flops=self._subject.work[network].flops,
            bytes_moved=self._subject.work[network].bytes_moved,
            held_bytes=int(HELD_PER_WEIGHT * self._subject.weight_bytes(network)) if on_host else 0,
            reference=reference[0] if reference else None,
            reference_name=reference[1] if reference else "",
            unbudgeted=compiled,
        )

    def _reference(self, network: str) -> Outputs:
        from lamp_trt.benchmarks.verify.reference.arithmetic import EXACT
        from lamp_trt.benchmarks.verify.reference.networks import reference_outputs

        inputs = self._subject.original_inputs(network)
        return reference_outputs(network, self._folder(network), EXACT, inputs)

    def _folder(self, network: str) -> Any:
        motion = self._motion if network == LAMP.unet else ""
        return self._subject.options.checkpoints.folder(component_of(network).origin, motion)

    @contextmanager
    def _setup(self, network: str, lean: bool, compiled: bool) -> Iterator[Callable[[], Any]]:
        import torch

        from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS, module_inputs
        from lamp_trt.export.convert import DTYPES

        subject, entry = self._subject, REFERENCE_NETWORKS[network]
        dtype = DTYPES[subject.bundle.network(network).precision]
        device = "cpu" if subject.ordinal is None else f"cuda:{subject.ordinal}"
        module = entry.load(self._folder(network), dtype).to(device)
        if lean:
            module = _lean(module)
        called: Any = torch.compile(module) if compiled else module
        inputs = module_inputs(module, subject.original_inputs(network))
        names = [tensor.name for tensor in subject.bundle.network(network).outputs]

        def forward() -> tuple["torch.Tensor", ...]:
            try:
                with torch.inference_mode():
                    return entry.run(called, inputs)
            except Exception as error:  # any failure of a peer is reported as not measured
                raise EngineError(f"PyTorch failed in {network}: {str(error).strip():.200}") from error

        def on_host() -> dict[str, np.ndarray[Any, Any]]:
            return {name: t.float().numpy() for name, t in zip(names, forward(), strict=True)}

        with torch_threads(subject.options.num_threads):
            if subject.ordinal is None:
                yield on_host
            else:
                yield torch_seconds(forward, subject.ordinal)


def _lean(module: "nn.Module") -> "nn.Module":
    from lamp_trt.export.lamp.lean_unet import make_lean

    lean: nn.Module = make_lean(module)  # type: ignore[arg-type]
    return lean
