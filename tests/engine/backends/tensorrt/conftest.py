# SPDX-License-Identifier: Apache-2.0
"""TensorRT's double with a toy bundle, and TensorRT-RTX with one in fp16."""

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.engine.backends.tensorrt import engine as tensorrt_engine
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine
from lamp_trt.engine.bundle.reader import Bundle
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice
from tests.doubles.tensorrt import CudaDouble
from tests.doubles.tensorrt_engine import UNET, Bound, keep_plan
from tests.fixtures.recast_bundle import recast


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDouble]:
    """TensorRT and CUDA replaced by their doubles."""
    cuda = CudaDouble()
    cuda.install(monkeypatch)
    monkeypatch.setattr(tensorrt_engine, "tensorrt", lambda: double)
    yield cuda
    gc.collect()  # finalizers find the double still
    assert not cuda.graphs
    assert not cuda.memory


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def unet(bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path) -> Callable[..., Bound]:
    """The LAMP UNet from a plan with these options, showing `motion`."""

    def make(motion: str = "horse_run", **options: Any) -> Bound:
        residence = options.pop("resident_motions", "mapped")
        keep_plan(bundle, tmp_path, UNET, "horse_run", **{"refit": True, **options})
        engine = TensorRtEngine(
            bundle,
            UNET,
            device=0,
            stream=device.stream,
            motion=motion,
            engine_dir=tmp_path,
            resident_motions=residence,
        )
        return Bound(engine, device)

    return make


@pytest.fixture
def rtx_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real builder, also where TensorRT is installed beside it."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
    monkeypatch.setattr(trt, "tensorrt", lambda: rtx)


@pytest.fixture(scope="session")
def half(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle in fp16. Tests do not change it."""
    return recast(Bundle.open(toy_bundle), tmp_path_factory.mktemp("half") / "toy")


@pytest.fixture
def copy(half: Bundle, tmp_path: Path) -> Bundle:
    """One that may be changed."""
    shutil.copytree(half.path, tmp_path / "copy")
    return dataclasses.replace(half, path=tmp_path / "copy")
