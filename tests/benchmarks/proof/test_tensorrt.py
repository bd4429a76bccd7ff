# SPDX-License-Identifier: Apache-2.0
"""The proof of TensorRT's own claims, with builds and engines that only take time as they are told."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lamp_trt.benchmarks.proof import tensorrt as proof_tensorrt
from lamp_trt.benchmarks.proof.check import Unavailable
from lamp_trt.benchmarks.proof.tensorrt import TensorRtProof
from lamp_trt.benchmarks.proof.work import Work
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
from lamp_trt.engine.errors import EngineError


class Clock:
    """Seconds that pass when a build says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(proof_tensorrt, "time", clock)
    return clock


@pytest.fixture
def proof(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> TensorRtProof:
    """On TensorRT 10.16, whose builds take 100 s, with the cache 20 s."""

    def build(bundle: str, options: TensorRtOptions, folder: Path) -> list[Any]:
        assert (bundle, options.networks, options.motions) == ("bundle", ("lamp_unet",), ("first",))
        folder.mkdir(exist_ok=True)
        cache, plan = folder / "timing-x.cache", folder / f"lamp_unet-{options.refit}.plan"
        clock.now += 20 if cache.exists() else 100
        cache.write_bytes(b"")
        plan.write_bytes(b"plan")
        return [SimpleNamespace(path=plan)]

    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = "10.16.1"
    monkeypatch.setattr(trt, "tensorrt", lambda: module)
    monkeypatch.setattr(proof_tensorrt, "build_engines", build)
    monkeypatch.setattr(Work, "bundle", "bundle")
    return TensorRtProof(Work(tmp_path, None, lambda *_: None))  # type: ignore[arg-type, return-value]


def test_builds_are_timed_and_the_cache_is_compared(proof: TensorRtProof) -> None:
    claims = dict(proof.checks())
    assert len(claims) == 4
    frozen, refittable, rebuild, _ = claims.values()
    assert json.loads(frozen()) == {"build_s": 100.0, "plan_bytes": 4}
    assert json.loads(refittable()) == {"build_s": 100.0, "plan_bytes": 4}
    assert (proof.folder("refittable") / "lamp_unet-True.plan").exists()
    assert rebuild() == "20.0 s with the cache, 100.0 s without"
    assert not proof.folder("again").exists()


def test_a_cache_that_brings_nothing_fails(
    proof: TensorRtProof, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof.build("frozen")

    def slow(bundle: str, options: TensorRtOptions, folder: Path) -> list[Any]:
        clock.now += 100
        return []

    monkeypatch.setattr(proof_tensorrt, "build_engines", slow)
    with pytest.raises(AssertionError, match=r"100\.0 s with the cache"):
        proof.rebuild()


@pytest.mark.parametrize(("refittable_ms", "holds"), [(20.5, True), (20.7, False)])
def test_the_cost_of_refit_is_held_against_its_limit(
    refittable_ms: float, holds: bool, proof: TensorRtProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_ms = {"tensorrt frozen": 20.0, "tensorrt refittable": refittable_ms}
    closed = []

    class Timed:
        def __init__(self, work: Work, backend: str) -> None:
            self.work, self.backend = work, backend

        def load(self) -> None:
            self.work.load(self.backend, self.work, "lamp_unet")

        def times(self) -> None:
            self.work.results[self.backend] = {"step_ms": step_ms[self.backend]}

        def close(self) -> None:
            closed.append(self.backend)

    loaded = []
    monkeypatch.setattr(proof_tensorrt, "UnetProof", Timed)
    monkeypatch.setattr(
        proof_tensorrt, "device_engine", lambda *_, engine_dir, **__: loaded.append(engine_dir)
    )
    proof.work.device = SimpleNamespace(ordinal=0, stream=1)  # type: ignore[assignment]
    if holds:
        assert proof.cost_of_refit() == "20.50 ms a step, frozen 20.00 ms: +2.5%"
    else:
        with pytest.raises(AssertionError, match=r"\+3\.5%"):
            proof.cost_of_refit()
    assert closed == list(step_ms)
    assert loaded == [proof.folder("frozen"), proof.folder("refittable")]


def test_what_cannot_be_shown_here_says_what_is_missing(
    proof: TensorRtProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("tensorrt_rtx")
    monkeypatch.setattr(trt, "tensorrt", lambda: module)
    for check in (lambda: proof.build("refittable"), proof.cost_of_refit):
        with pytest.raises(Unavailable, match="marks no single weights refittable"):
            check()
    with pytest.raises(Unavailable, match="no timing cache"):
        proof.rebuild()

    def missing() -> ModuleType:
        raise EngineError("TensorRT is not installed")

    monkeypatch.setattr(trt, "tensorrt", missing)
    with pytest.raises(Unavailable, match="TensorRT is not installed"):
        proof.build("frozen")
