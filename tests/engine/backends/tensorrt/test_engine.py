# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines at run time, on a double that keeps TensorRT's documented rules: what they compute and
refuse, and the whole of Algorithm 1."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.tensorrt import layers as tensorrt_layers
from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine
from lamp_trt.engine.backends.tensorrt.key import engine_key
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.engine.graph.model import bundle_model
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.ops import CudaVideoOps
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice
from tests.doubles.tensorrt import CudaDouble
from tests.doubles.tensorrt_engine import (
    UNET,
    Bound,
    assert_equal,
    expected,
    inputs_of,
    keep_plan,
    writing,
)
from tests.tolerances import DEVICE_LATENTS_ATOL, DEVICE_LEVELS_DIFFERING


@pytest.mark.parametrize("network", [name for name in VIDEO_NETWORKS if name != UNET])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_network_computes_between_its_addresses(
    network: str, stripped: bool, bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, network, stripped=stripped)
    engine = TensorRtEngine(bundle, network, device=0, stream=device.stream, engine_dir=tmp_path)
    bound, inputs = Bound(engine, device), inputs_of(bundle, network)
    assert_equal(bound.run(inputs), expected(bundle, network, inputs))
    assert engine.scratch_bytes == 5120  # 5000, rounded up to a multiple of 256
    device.memory.check()


def test_an_engine_says_what_it_lacks_before_tensorrt_is_asked(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, "text_encoder")
    engine = TensorRtEngine(bundle, "text_encoder", device=0, stream=device.stream, engine_dir=tmp_path)
    with pytest.raises(EngineError, match="input_ids is bound to no address"):
        engine.enqueue(device.stream)
    with pytest.raises(EngineError, match="no tensor 'latents'"):
        engine.bind("latents", 1 << 20)
    with pytest.raises(EngineError, match="not a multiple of 256"):
        engine.bind("input_ids", (1 << 20) + 8)
    for tensor in (*engine.inputs, *engine.outputs):
        engine.bind(tensor.name, device.empty(tensor.shape, tensor.dtype).pointer)
    with pytest.raises(EngineError, match="no scratch of 5120 bytes"):
        engine.enqueue(device.stream)
    with pytest.raises(EngineError, match="needs 5120 bytes of scratch"):
        engine.use_scratch(1 << 20, 5000)
    with pytest.raises(EngineError, match="needs 5120 bytes of scratch"):
        engine.use_scratch((1 << 20) + 8, 1 << 20)
    with pytest.raises(EngineError, match="must run once before it is captured"):
        engine.capture(device.stream, lambda: None)
    with engine:
        assert engine.unusable is None
    engine.close()  # again
    for use in (
        lambda: engine.enqueue(device.stream),
        lambda: engine.scratch_bytes,
        lambda: engine.set_motion("rain"),
    ):
        with pytest.raises(EngineError, match="text_encoder was closed"):
            use()


def test_a_plan_that_is_missing_foreign_or_damaged_is_refused(
    bundle: Bundle, cuda: CudaDouble, tmp_path: Path
) -> None:
    def load(folder: Path) -> TensorRtEngine:
        return TensorRtEngine(bundle, "vae_encoder", device=0, stream=1, engine_dir=folder)

    with pytest.raises(EngineError, match=r"holds no tensorrt engine for vae_encoder.*lamp-trt build"):
        load(tmp_path / "none")
    plan = keep_plan(bundle, tmp_path, "vae_encoder")
    plan.write_bytes(plan.read_bytes().replace(b"5000", b"5001"))
    with pytest.raises(EngineError, match="damaged or exchanged"):
        load(tmp_path)
    key = engine_key(bundle, "vae_encoder", double, "sm_90")
    compiled.store(tmp_path, key, "plan", {}, writing(b"no plan"))
    with pytest.raises(EngineError, match=r"TensorRT does not load .*plan"):
        load(tmp_path)
    data = double.plan(bundle, "vae_decoder")
    compiled.store(tmp_path, key, "plan", {}, writing(data))
    with pytest.raises(EngineError, match=r"has tensor image as .*INPUT|has tensor image as .*OUTPUT"):
        load(tmp_path)
    foreign = dataclasses.replace(key, device="sm_80")
    compiled.store(tmp_path / "foreign", foreign, "plan", {}, writing(data))
    with pytest.raises(EngineError, match="was built for sm_80, this device is sm_90"):
        load(tmp_path / "foreign")


def test_weights_are_streamed_within_a_budget_that_counts_as_scratch(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, "vae_encoder", streaming=True)
    engine = TensorRtEngine(bundle, "vae_encoder", device=0, stream=device.stream, engine_dir=tmp_path)
    assert engine.scratch_bytes == 6144


def test_a_captured_run_is_replayed_with_what_the_arrays_hold_then(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, device: HostDevice
) -> None:
    from cuda.bindings.runtime import cudaStreamCaptureMode

    bound = unet()
    bound.run(inputs_of(bundle, UNET, 1))
    replay = bound.engine.capture(device.stream, lambda: bound.engine.enqueue(device.stream))
    assert cuda.modes == [cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal]
    assert device.queue.idle
    for seed in (2, 3):
        inputs = inputs_of(bundle, UNET, seed)
        bound.put(inputs)
        replay()
        device.synchronize()
        assert_equal(bound.outputs(), expected(bundle, UNET, inputs, "horse_run"))
    assert len(cuda.graphs) == 1
    del replay
    assert not cuda.graphs


def test_a_capture_that_fails_leaves_the_stream_usable(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, device: HostDevice
) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)
    bound.run(inputs)

    def work() -> None:
        bound.engine.enqueue(device.stream)
        raise EngineError("a kernel cannot be captured")

    with pytest.raises(EngineError, match="a kernel cannot be captured"):
        bound.engine.capture(device.stream, work)
    assert not device.queue.recording
    assert not cuda.graphs
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_capture_that_cuda_refuses_is_an_engine_error(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = unet()
    bound.run(inputs_of(bundle, UNET))
    monkeypatch.setattr(
        "cuda.bindings.runtime.cudaGraphInstantiate", lambda graph, flags: (cuda.failure, None)
    )
    with pytest.raises(EngineError, match="cudaGraphInstantiate failed: operation failed due to"):
        bound.engine.capture(bound.device.stream, lambda: bound.engine.enqueue(bound.device.stream))
    assert not cuda.graphs


# --- layers -------------------------------------------------------------------------------------------


def test_the_layers_of_a_plan_are_told(
    bundle: Bundle, cuda: CudaDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_layers, "tensorrt", lambda: double)
    keep_plan(bundle, tmp_path, "vae_encoder")
    layers = tensorrt_layers.plan_layers(bundle, "vae_encoder", engine_dir=tmp_path)
    graph = bundle_model(bundle, "vae_encoder", None).graph
    assert [layer.name for layer in layers] == [node.name for node in graph.node]
    assert tensorrt_layers.layers_text(layers).endswith(f"{len(layers)} layers")


def test_layers_in_detail_name_kernel_and_outputs() -> None:
    """As TensorRT 10's inspector writes them."""
    output = {"Name": "y", "Dimensions": [2, 320, 40, 64], "Format/Datatype": "Half"}
    detailed = {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [output], "TacticName": "sm90_k"}
    layers = tensorrt_layers.parse_layers(
        json.dumps({"Layers": [detailed, {"Name": "noop"}], "Bindings": []})
    )
    assert layers[0] == tensorrt_layers.PlanLayer(
        "conv1", "CaskConvolution", "sm90_k", ("y 2x320x40x64 Half",)
    )
    text = tensorrt_layers.layers_text(layers)
    assert text.splitlines()[0] == "CaskConvolution       conv1  sm90_k"
    assert text.endswith("2 layers: 1 CaskConvolution")
    with pytest.raises(EngineError, match="inspector returned an unknown format: 'nothing'"):
        tensorrt_layers.parse_layers("nothing")


# --- the whole pipeline -------------------------------------------------------------------------------


class OnTensorRt:
    """A pipeline of TensorRT engines on the double."""

    def __init__(self, bundle: Bundle, engine_dir: Path) -> None:
        motion = bundle.manifest.default_motion
        assert motion is not None
        self.device = HostDevice()

        def load(network: str) -> TensorRtEngine:
            shown = motion if network == UNET else None
            stream = self.device.stream
            return TensorRtEngine(
                bundle, network, device=0, stream=stream, motion=shown, engine_dir=engine_dir
            )

        stages = CudaVideoOps(bundle.manifest, EngineSet(self.device, load))
        tokenizer = load_tokenizer(bundle.tokenizer_folder("tokenizer"), bundle.manifest.sizes["tokens"])
        self.pipe = LampPipeline(bundle, stages, tokenizer, motion, None)


def assert_same_video(ours: Video, reference: Video) -> None:
    np.testing.assert_array_equal(ours.first_frame, reference.first_frame)
    np.testing.assert_allclose(ours.latents, reference.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert (ours.frames != reference.frames).mean() <= DEVICE_LEVELS_DIFFERING


@pytest.mark.parametrize("refit", [True, False])
def test_the_video_of_tensorrt_engines_is_the_cpus_also_after_switches(
    refit: bool, bundle: Bundle, cuda: CudaDouble, tmp_path: Path
) -> None:
    for network in VIDEO_NETWORKS:
        if network != UNET:
            keep_plan(bundle, tmp_path, network, scratch=70_000 if network == "vae_decoder" else 3000)
    keep_plan(bundle, tmp_path, UNET, "horse_run", refit=refit)
    if not refit:
        keep_plan(bundle, tmp_path, UNET, "rain", scratch=90_000)
    host, ours = lamp_trt.load(bundle.path, num_threads=1), OnTensorRt(bundle, tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 3}
    videos = [ours.pipe("a horse", motion=motion, **options) for motion in ("horse_run", "rain", "horse_run")]
    of_the_loop, of_decoding = 3, 1 if refit else 2  # one for each motion shown; again after scratch moved
    assert len(cuda.modes) == of_the_loop + of_decoding
    assert len(cuda.graphs) == 2
    for video, motion in zip(videos, ("horse_run", "rain"), strict=False):
        assert_same_video(video, host("a horse", motion=motion, **options))
    np.testing.assert_array_equal(videos[2].frames, videos[0].frames)
    np.testing.assert_array_equal(videos[2].latents, videos[0].latents)
    ours.device.memory.check()
