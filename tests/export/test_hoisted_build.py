# SPDX-License-Identifier: Apache-2.0
"""Bundles built with `hoist`: what they hold, what another build changes, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import lamp_trt
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.cli import main
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.paths import graph_path, weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.precompute import HOISTED, HOISTS, precompute_networks
from lamp_trt.export.build import build_bundle
from lamp_trt.export.motions import add_motion
from lamp_trt.export.planned import BuildReport
from tests.export.test_build import altered_checkpoint
from tests.export.test_onnx import random_inputs
from tests.fixtures.sdxl import FIRST_FRAME_SIZE
from tests.fixtures.toy import toy_options
from tests.tolerances import HOISTED_LATENTS_ATOL, HOISTED_RTOL

ALL = tuple(HOISTS)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def bundle(hoisted_bundle: Path, tmp_path: Path) -> Path:
    """A copy of hoisted_bundle that a test may change."""
    copy = tmp_path / "copy"
    shutil.copytree(hoisted_bundle, copy)
    return copy


def made(report: BuildReport) -> set[str]:
    return {file.path for file in report.files if file.seconds is not None}


def test_videos_are_the_plain_bundles(hoisted_bundle: Path, toy_bundle: Path) -> None:
    pipes = [lamp_trt.load(path, num_threads=1) for path in (hoisted_bundle, toy_bundle)]
    for motion, guidance_scale in (("horse_run", 12.5), ("rain", 12.5), ("horse_run", 1.0)):
        ours, expected = (
            pipe(
                "a horse runs",
                first_frame=PICTURE,
                motion=motion,
                guidance_scale=guidance_scale,
                num_inference_steps=4,
            )
            for pipe in pipes
        )
        np.testing.assert_allclose(ours.latents, expected.latents, rtol=0, atol=HOISTED_LATENTS_ATOL)


@pytest.mark.parametrize("unet", HOISTED)
def test_unets_are_the_plain_bundles(unet: str, hoisted_bundle: Path, sdxl_bundle: Path) -> None:
    plain, hoisted = Bundle.open(sdxl_bundle), Bundle.open(hoisted_bundle)
    arrays = random_inputs(plain.network(unet).inputs)
    arrays["sample"][1] = arrays["sample"][0]  # as guidance has it
    (expected,) = OnnxRuntimeEngine(plain, unet, num_threads=1).run(arrays).values()
    for network in (*HOISTED[unet], unet):
        engine = OnnxRuntimeEngine(hoisted, network, num_threads=1)
        arrays |= engine.run({tensor.name: arrays[tensor.name] for tensor in engine.inputs})
    assert distance(expected[0], expected[1]).rel_l2 > 1e-3  # the texts differ
    assert distance(arrays["noise_pred"], expected).rel_l2 <= HOISTED_RTOL


@pytest.mark.slow
@pytest.mark.parametrize("hoist", [("text",), ("time",), ("prefix",)], ids="+".join)
def test_each_hoist_is_a_switch_of_its_own(
    hoist: tuple[str, ...], toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(toy_bundle, out)
    build_bundle(out, toy_options(toy, hoist=hoist))
    manifest = Bundle.open(out).manifest
    names = {"text": {"lamp_text_keys_values"}, "time": {"lamp_time_projections"}, "prefix": set()}
    assert set(precompute_networks(manifest, "lamp_unet")) == names[hoist[0]]
    taken = {tensor.name for tensor in manifest.networks["lamp_unet"].inputs}
    assert ("encoder_hidden_states" in taken) == (hoist != ("text",))
    assert ("timestep" in taken) == (hoist != ("time",))
    assert ("time_projections" in taken) == (hoist == ("time",))
    ours, expected = (
        lamp_trt.load(path, num_threads=1)("rain", first_frame=PICTURE, num_inference_steps=2)
        for path in (out, toy_bundle)
    )
    np.testing.assert_allclose(ours.latents, expected.latents, rtol=0, atol=HOISTED_LATENTS_ATOL)


@pytest.mark.parametrize(("unet", "component"), [("lamp_unet", "unet"), ("sdxl_unet", "sdxl_unet")])
def test_graphs_beside_point_into_the_components_own_file(
    hoisted_bundle: Path, unet: str, component: str
) -> None:
    manifest = Bundle.open(hoisted_bundle).manifest
    assert precompute_networks(manifest, unet) == list(HOISTED[unet])
    for name in HOISTED[unet]:
        assert manifest.networks[name].component == component
        model = onnx.load(hoisted_bundle / graph_path(name), load_external_data=False)
        entries = [entry for weight in model.graph.initializer for entry in weight.external_data]
        files = {entry.value for entry in entries if entry.key == "location"}
        assert files == {weights_path(component)}


@pytest.mark.slow
def test_building_plain_again_drops_what_stood_beside(
    bundle: Path, toy: Path, sdxl: Path, sdxl_bundle: Path
) -> None:
    options = toy_options(toy, sdxl=sdxl, **FIRST_FRAME_SIZE)
    report = build_bundle(bundle, options)
    assert made(report) == {graph_path("lamp_unet"), graph_path("sdxl_unet")}
    assert Bundle.open(bundle).manifest == Bundle.open(sdxl_bundle).manifest
    assert made(build_bundle(bundle, options)) == set()


def test_a_second_hoisted_build_makes_nothing_whatever_the_order(bundle: Path, toy: Path, sdxl: Path) -> None:
    digest = Bundle.open(bundle).digest
    hoist = tuple(reversed(ALL))
    report = build_bundle(bundle, toy_options(toy, sdxl=sdxl, hoist=hoist, **FIRST_FRAME_SIZE))
    assert (made(report), report.digest) == (set(), digest)


def test_a_build_of_other_networks_keeps_the_hoisted_ones(bundle: Path, toy: Path) -> None:
    before = Bundle.open(bundle).manifest
    build_bundle(bundle, toy_options(toy, only=("vae_decoder",), motions={}))
    assert Bundle.open(bundle).manifest == before


@pytest.mark.slow
def test_the_command_line_takes_hoists(toy: Path, tmp_path: Path) -> None:
    motion = f"rain={toy / 'motions' / 'rain'}"
    size = ["--height=64", "--width=64", "--frames=2"]
    assert main(["build", "--motion", motion, "--out", str(tmp_path / "b"), *size, "--hoist=time", "-q"]) == 0
    manifest = Bundle.open(tmp_path / "b").manifest
    assert list(manifest.networks) == ["lamp_time_projections", "lamp_unet"]


def test_an_unknown_hoist_is_bad_usage(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", f"--sd={toy / 'sd'}", "--out", str(tmp_path / "b"), "--hoist", "text,tine"]
    assert main(command) == 2
    assert "unknown hoist 'tine'; choose from text, time, prefix" in capsys.readouterr().err


def test_a_motion_with_shared_tensors_of_its_own_is_refused_beside_hoisted_networks(
    bundle: Path, toy: Path, tmp_path: Path
) -> None:
    def shift(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.conv2d.bias"] += 0.5

    digest = Bundle.open(bundle).digest
    whole = altered_checkpoint(toy / "motions" / "rain", tmp_path / "whole", shift)
    with pytest.raises(
        BundleError, match=r"motion 'whole' differs from the shared weights .* without --hoist"
    ):
        add_motion(bundle, "whole", whole)
    assert Bundle.open(bundle).digest == digest


def test_tensorrts_parser_takes_every_network(hoisted_bundle: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from lamp_trt.engine.backends.tensorrt.network import parse_network

    bundle = Bundle.open(hoisted_bundle)
    for name, entry in bundle.manifest.networks.items():
        parsed = parse_network(bundle, rtx, name, "rain" if name == "lamp_unet" else None)
        inputs = [parsed.network.get_input(i).name for i in range(parsed.network.num_inputs)]
        assert inputs == [tensor.name for tensor in entry.inputs]
