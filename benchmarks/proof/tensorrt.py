# SPDX-License-Identifier: Apache-2.0
"""Checks of TensorRT alone, on the LAMP UNet: its builds, its timing cache, the cost of refit.

Parity, captures and motions are the same claims for every backend: benchmarks/proof/unet.py.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.unet import UnetProof
from lamp_trt.benchmarks.proof.work import MOTIONS, Work
from lamp_trt.engine.backends.contract import DeviceEngine
from lamp_trt.engine.backends.registry import device_engine
from lamp_trt.engine.backends.tensorrt import BACKEND, trt
from lamp_trt.engine.backends.tensorrt.build import build_engines
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP

REFIT_COST = 0.03
"""Share by which a refittable UNet may be slower than a frozen one."""


class TensorRtProof:
    """Two engines of the LAMP UNet, "refittable" and "frozen", each in a folder of its own."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.figures: dict[str, Any] = work.results.setdefault("tensorrt engines", {})

    def checks(self) -> Iterator[Check]:
        yield "TensorRT builds a LAMP UNet with one motion for good", lambda: self.build("frozen")
        yield "TensorRT builds a LAMP UNet whose motions can be exchanged", lambda: self.build("refittable")
        yield "TensorRT builds again faster with the timing cache", self.rebuild
        yield f"exchangeable motions cost at most {REFIT_COST:.0%} of a step on TensorRT", self.cost_of_refit

    def folder(self, kind: str) -> Path:
        return self.work.folder / f"engines-{kind}"

    def build(self, kind: str) -> str:
        self._require(kind)
        shutil.rmtree(self.folder(kind), ignore_errors=True)  # what an earlier call left
        start = time.perf_counter()
        refit = kind == "refittable"
        options = TensorRtOptions(networks=(LAMP.unet,), motions=MOTIONS[:1], refit=refit)
        (engine,) = build_engines(self.work.bundle, options, self.folder(kind))
        figures = {"build_s": time.perf_counter() - start, "plan_bytes": engine.path.stat().st_size}
        self.figures[kind] = figures
        return json.dumps(figures)

    def rebuild(self) -> str:
        caches = list(self.folder("frozen").glob("timing-*.cache"))
        if not caches:
            raise Unavailable("there is no timing cache (TensorRT-RTX keeps none)")
        folder = self.folder("again")
        folder.mkdir()
        shutil.copy(caches[0], folder)
        first, start = self.figures["frozen"]["build_s"], time.perf_counter()
        options = TensorRtOptions(networks=(LAMP.unet,), motions=MOTIONS[:1], refit=False)
        build_engines(self.work.bundle, options, folder)
        seconds = self.figures["frozen"]["rebuild_s"] = time.perf_counter() - start
        shutil.rmtree(folder)
        assert seconds < first, f"{seconds:.1f} s with the cache, {first:.1f} s without"
        return f"{seconds:.1f} s with the cache, {first:.1f} s without"

    def cost_of_refit(self) -> str:
        self._require("refittable")
        step_ms = {kind: self._step_ms(kind) for kind in ("frozen", "refittable")}
        self.figures["step_ms"] = step_ms
        cost = step_ms["refittable"] / step_ms["frozen"] - 1
        told = f"{step_ms['refittable']:.2f} ms a step, frozen {step_ms['frozen']:.2f} ms: {cost:+.1%}"
        assert cost <= REFIT_COST, told
        return told

    def _step_ms(self, kind: str) -> float:
        """Return the time of the loop's captured step."""
        folder = self.folder(kind)

        def load(backend: str, work: Work, network: str) -> DeviceEngine:
            device = work.device
            return device_engine(
                BACKEND.name,
                work.bundle,
                network,
                device=device.ordinal,
                stream=device.stream,
                motion=MOTIONS[0],
                engine_dir=folder,
            )

        proof = UnetProof(dataclasses.replace(self.work, load=load), f"tensorrt {kind}")
        proof.load()
        try:
            proof.times()
        finally:
            proof.close()
        return float(self.work.results[f"tensorrt {kind}"]["step_ms"])

    def _require(self, kind: str) -> None:
        """Raise Unavailable if TensorRT is not installed or cannot build this kind."""
        reason = trt.why_no_refit(installed())
        if kind == "refittable" and reason is not None:
            raise Unavailable(reason)


def installed() -> ModuleType:
    """Return TensorRT; Unavailable if no usable one is installed."""
    try:
        return trt.tensorrt()
    except EngineError as error:
        raise Unavailable(str(error)) from error
