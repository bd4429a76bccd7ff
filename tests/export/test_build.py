# SPDX-License-Identifier: Apache-2.0
"""Building bundles: what is made, kept, refused; motions added and removed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import BundleError, CheckpointError, InputError, LampError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.build import build_bundle
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.export.motions import add_motion, remove_motion
from lamp_trt.export.planned import GRAPH_KEY, FileMaker, PlannedFile
from lamp_trt.export.recipe import BuildOptions
from tests.fixtures.toy import toy_options

BUNDLE_NETWORKS = ("text_encoder", "vae_encoder", "vae_decoder", "lamp_unet")
WITHOUT_UNET = ("text_encoder", "vae_encoder", "vae_decoder")


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of toy_bundle that a test may change."""
    copy = tmp_path / "copy"
    shutil.copytree(toy_bundle, copy)
    return copy


def files_of(bundle: Path) -> dict[str, bytes]:
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def altered_checkpoint(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a LAMP checkpoint whose state dict went through `change`."""
    shutil.copytree(source, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    change(state)
    torch.save(state, weights)
    return folder


def noise_pred(bundle: Path, motion: str) -> np.ndarray:
    opened = Bundle.open(bundle)
    rng = np.random.default_rng(0)
    arrays = {
        tensor.name: np.full((1,), 501, np.float32)
        if tensor.name == "timestep"
        else rng.standard_normal(tensor.shape).astype(np.float32)
        for tensor in opened.network("lamp_unet").inputs
    }
    return OnnxRuntimeEngine(opened, "lamp_unet", motion=motion).run(arrays)["noise_pred"]


def test_a_bundle_holds_what_it_says(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle, verify="full")
    assert set(bundle.manifest.networks) == {*BUNDLE_NETWORKS}
    assert set(bundle.manifest.motions) == {"horse_run", "rain"}
    assert bundle.manifest.default_motion == "horse_run"
    assert bundle.manifest.scaling_factors == {"vae": 0.18215}
    sizes = bundle.manifest.sizes
    assert (sizes["height"], sizes["latent_height"], sizes["num_frames"], sizes["tokens"]) == (64, 8, 4, 77)
    assert set(files_of(toy_bundle)) - {"bundle.json"} == {*bundle.manifest.files}


def test_weights_are_the_checkpoints(toy: Path, toy_bundle: Path) -> None:
    state = load_lamp_unet(toy / "motions" / "rain").state_dict()
    shared = read_weight_file(toy_bundle / "weights" / "unet.safetensors").arrays()
    motion = read_weight_file(toy_bundle / "motions" / "rain.safetensors").arrays()
    assert {*shared, *motion} == {*state}
    for name, array in {**shared, **motion}.items():
        np.testing.assert_array_equal(array, state[name].numpy(), err_msg=name)


def test_a_second_build_makes_nothing(toy: Path, bundle: Path) -> None:
    before = files_of(bundle)
    report = build_bundle(bundle, toy_options(toy))
    assert [file.path for file in report.files if file.seconds is not None] == []
    assert files_of(bundle) == before


def test_a_second_build_loads_no_torch(toy: Path, bundle: Path, run_python: Callable[[str], str]) -> None:
    code = f"""
import sys
from pathlib import Path
from lamp_trt.cli import main
toy = Path({str(toy)!r})
motions = [f"--motion={{name}}={{toy / 'motions' / name}}" for name in ("horse_run", "rain")]
size = ["--height=64", "--width=64", "--frames=4"]
assert main(["build", "-q", f"--sd={{toy / 'sd'}}", *motions, *size, "--out", {str(bundle)!r}]) == 0
print("torch" in sys.modules)
"""
    assert run_python(code).splitlines()[-1] == "False"


def test_two_builds_give_equal_bytes(toy: Path, toy_bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(toy, moved)
    build_bundle(tmp_path / "again", toy_options(moved, only=WITHOUT_UNET))
    original = files_of(toy_bundle)
    again = files_of(tmp_path / "again")
    again.pop("bundle.json")
    assert {path: original[path] for path in again} == again
    assert "vae_decoder.onnx" in again


@pytest.mark.slow
def test_two_whole_builds_give_equal_bytes(toy: Path, toy_bundle: Path, tmp_path: Path) -> None:
    build_bundle(tmp_path / "again", toy_options(toy))
    assert files_of(tmp_path / "again") == files_of(toy_bundle)


def test_an_interrupted_build_resumes_where_it_stopped(
    toy: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    options = toy_options(toy, only=WITHOUT_UNET)
    make = FileMaker.make

    def interrupted(self: Any, planned: PlannedFile) -> Any:
        if planned.path == "vae_decoder.onnx":
            raise KeyboardInterrupt
        return make(self, planned)

    with monkeypatch.context() as patch:
        patch.setattr(FileMaker, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_bundle(out, options)
    with pytest.raises(BundleError, match="unfinished"):
        Bundle.open(out)
    report = build_bundle(out, options)
    made = [file.path for file in report.files if file.seconds is not None]
    assert made[0] == "vae_decoder.onnx"
    assert "weights/vae.safetensors" not in made
    assert (out / "vae_decoder.onnx").read_bytes() == (toy_bundle / "vae_decoder.onnx").read_bytes()


def test_only_needs_the_checkpoints_of_its_networks(toy: Path, tmp_path: Path) -> None:
    options = BuildOptions(sd=toy / "sd", only=("vae_decoder",), height=64, width=64)
    report = build_bundle(tmp_path / "bundle", options)
    assert [file.path for file in report.files] == ["weights/vae.safetensors", "vae_decoder.onnx"]
    with pytest.raises(InputError, match="lamp_unet needs a checkpoint that was not given: add --motion"):
        build_bundle(tmp_path / "other", BuildOptions(sd=toy / "sd", only=("lamp_unet",)))
    assert not (tmp_path / "other").exists()


def test_a_build_adds_to_a_bundle(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    build_bundle(out, BuildOptions(sd=toy / "sd", only=("vae_decoder",), height=64, width=64))
    build_bundle(out, BuildOptions(sd=toy / "sd", only=("text_encoder",), height=64, width=64))
    assert set(Bundle.open(out).manifest.networks) == {"vae_decoder", "text_encoder"}
    with pytest.raises(BundleError, match=r"holds vae_decoder for 64x64 .* this build is for 128x64"):
        build_bundle(out, BuildOptions(sd=toy / "sd", only=("vae_encoder",), height=64, width=128))
    assert set(Bundle.open(out).manifest.networks) == {"vae_decoder", "text_encoder"}


def test_motions_differ_and_a_switched_engine_shows_the_other(toy_bundle: Path) -> None:
    opened = Bundle.open(toy_bundle)
    horse, rain = noise_pred(toy_bundle, "horse_run"), noise_pred(toy_bundle, "rain")
    assert np.abs(horse - rain).max() > 1e-3
    engine = OnnxRuntimeEngine(opened, "lamp_unet", motion="horse_run")
    engine.set_motion("rain")
    engine.set_motion("horse_run")
    rng = np.random.default_rng(0)
    arrays = {
        t.name: np.full((1,), 501, np.float32)
        if t.name == "timestep"
        else rng.standard_normal(t.shape).astype(np.float32)
        for t in opened.network("lamp_unet").inputs
    }
    np.testing.assert_array_equal(engine.run(arrays)["noise_pred"], horse)


def test_a_motion_is_added_and_removed(toy: Path, bundle: Path) -> None:
    before = files_of(bundle)
    report = add_motion(bundle, "rain2", toy / "motions" / "rain")
    assert [file.path for file in report.files] == ["motions/rain2.safetensors"]
    np.testing.assert_array_equal(noise_pred(bundle, "rain2"), noise_pred(bundle, "rain"))
    remove_motion(bundle, "rain2")
    assert files_of(bundle) == before


def test_adding_a_motion_again_changes_nothing(toy: Path, bundle: Path) -> None:
    before = files_of(bundle)
    add_motion(bundle, "rain", toy / "motions" / "rain")
    assert files_of(bundle) == before
    with pytest.raises(InputError, match="holds another checkpoint as motion 'rain'"):
        add_motion(bundle, "rain", toy / "motions" / "horse_run")
    assert files_of(bundle) == before


def test_the_default_motion_is_removed_only_if_another_is_named(bundle: Path) -> None:
    rain = noise_pred(bundle, "rain")
    with pytest.raises(InputError, match="'horse_run' is the default motion"):
        remove_motion(bundle, "horse_run")
    remove_motion(bundle, "horse_run", default="rain")
    opened = Bundle.open(bundle, verify="full")
    assert (set(opened.manifest.motions), opened.manifest.default_motion) == ({"rain"}, "rain")
    np.testing.assert_array_equal(noise_pred(bundle, "rain"), rain)
    with pytest.raises(InputError, match="no motion 'horse_run'; known: rain"):
        remove_motion(bundle, "horse_run")


def test_what_will_not_fit_on_the_disk_is_refused_before_it_is_made(
    toy: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamp_trt.engine.bundle import writer as bundle_writer

    needed: list[int] = []

    def full(writer: object, size: int) -> None:
        needed.append(size)
        raise BundleError("full")

    monkeypatch.setattr(bundle_writer.BundleWriter, "require_free", full)

    def data(*paths: Path) -> int:
        return sum(ref.length for path in paths for ref in read_weight_file(path).tensors.values())

    out = tmp_path / "whole"
    with pytest.raises(BundleError, match="full"):
        build_bundle(out, toy_options(toy))
    assert not list(out.glob("*/*"))
    with pytest.raises(BundleError, match="full"):
        add_motion(bundle, "again", toy / "motions" / "rain")
    build_bundle(bundle, toy_options(toy))  # nothing is missing, so nothing is asked for
    motions = [*bundle.glob("motions/*")]
    assert needed == [data(*bundle.glob("weights/*"), *motions), data(motions[0])]


def without_key(graph: bytes) -> bytes:
    """A graph but for its key, which names the checkpoint that the shared weights came from."""
    model = onnx.load_from_string(graph)
    assert [entry.key for entry in model.metadata_props] == [GRAPH_KEY]
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


@pytest.mark.slow
def test_another_default_motion_gives_the_graph_of_a_build_that_began_with_it(
    toy: Path, bundle: Path, tmp_path: Path
) -> None:
    remove_motion(bundle, "horse_run", default="rain")
    add_motion(bundle, "horse_run", toy / "motions" / "horse_run")
    motions = {name: toy / "motions" / name for name in ("rain", "horse_run")}
    build_bundle(tmp_path / "built", toy_options(toy, motions=motions))
    changed, built = (files_of(folder)["lamp_unet.onnx"] for folder in (bundle, tmp_path / "built"))
    assert without_key(changed) == without_key(built)


def test_a_checkpoint_with_other_shared_tensors_is_kept_whole(
    toy: Path, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def shift(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.conv2d.bias"] += 0.5

    other = altered_checkpoint(toy / "motions" / "rain", tmp_path / "other", shift)
    report = add_motion(bundle, "other", other)
    assert report.full_motions == ["other"]
    assert "motion other differs from the shared weights outside the motion tensors too: it" in caplog.text
    stored = read_weight_file(bundle / "motions" / "other.safetensors").tensors
    assert not all(map(is_motion_tensor, stored))
    assert Bundle.open(bundle).manifest.motions["other"].kind == "full"
    rain = noise_pred(bundle, "rain")
    assert np.abs(noise_pred(bundle, "other") - rain).max() > 1e-3
    remove_motion(bundle, "horse_run", default="other")
    remove_motion(bundle, "other", default="rain")
    np.testing.assert_array_equal(noise_pred(bundle, "rain"), rain)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_a_motion_saved_in_lower_precision_is_told_why_it_is_kept_whole(
    dtype: torch.dtype, name: str, toy: Path, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lower(state: dict[str, torch.Tensor]) -> None:
        state.update({key: tensor.to(dtype) for key, tensor in state.items()})

    other = altered_checkpoint(toy / "motions" / "rain", tmp_path / "other", lower)
    assert add_motion(bundle, "other", other).full_motions == ["other"]
    why = f"only by rounding: one of the two checkpoints was saved in {name}"
    assert (
        f"{why}, the other in a higher precision (save both in the same, or build with --precision"
        in caplog.text
    )
    caplog.clear()
    add_motion(bundle, "other", other)
    assert why in caplog.text  # although nothing was made


def test_motions_over_weights_that_a_build_would_replace_are_not_lost(toy: Path, bundle: Path) -> None:
    before = files_of(bundle)
    only_rain = {"rain": toy / "motions" / "rain"}
    with pytest.raises(BundleError, match="also holds the motions horse_run"):
        build_bundle(bundle, toy_options(toy, motions=only_rain))
    assert files_of(bundle) == before


def _drop(state: dict[str, torch.Tensor]) -> None:
    del state["conv_in.conv1d.weight"], state["conv_out.conv1d.bias"]


def _add(state: dict[str, torch.Tensor]) -> None:
    state["surplus"] = torch.zeros(1)


def _reshape(state: dict[str, torch.Tensor]) -> None:
    state["conv_in.conv_gate.bias"] = torch.zeros(2)


def _overflow(state: dict[str, torch.Tensor]) -> None:
    state["conv_in.conv_gate.bias"][0] = float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"lacks 2 tensors: conv_in\.conv1d\.weight .*; conv_out\.conv1d\.bias"),
        (_add, "has unknown 1 tensor: surplus"),
        (_reshape, r"has misshaped 1 tensor: conv_in\.conv_gate\.bias \[2\], expected \[1\]"),
        (_overflow, r"conv_in\.conv_gate\.bias .* not finite in fp32"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_and_leave_the_bundle_alone(
    toy: Path,
    bundle: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    before = files_of(bundle)
    other = altered_checkpoint(toy / "motions" / "rain", tmp_path / "other", change)
    with pytest.raises(CheckpointError, match=message):
        add_motion(bundle, "other", other)
    assert files_of(bundle) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sd": Path("/nowhere")}, "checkpoint /nowhere does not exist"),
        ({"height": 63}, "height is 63; the VAE takes multiples of 8: try 56 or 64"),
        ({"width": 0}, "width is 0"),
        ({"num_frames": 0}, "frames is 0; a video has at least 1"),
        ({"precision": "fp8"}, "precision is 'fp8'; choose one of bf16, fp16, fp32"),
        ({"only": ("unet",)}, "unknown network 'unet'; --only takes text_encoder"),
        ({"motions": {"../x": Path("/tmp")}}, "'../x' cannot name a motion"),
        ({"sd": None, "motions": None}, "nothing to build: give --sd DIR"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    toy: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LampError, match=message):
        build_bundle(tmp_path / "bundle", toy_options(toy, **change))
    assert not (tmp_path / "bundle").exists()


def test_checkpoints_that_do_not_belong_together_are_refused(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy / "motions" / "rain", other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 48}))
    with pytest.raises(CheckpointError, match="cross_attention_dim is 48, the text encoder's hidden_size is"):
        build_bundle(tmp_path / "bundle", toy_options(toy, motions={"rain": other}))


def test_motions_over_a_whole_default_motion_keep_their_own_shared_tensors(
    toy: Path, bundle: Path, tmp_path: Path
) -> None:
    def shift(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.conv2d.bias"] += 0.5

    rain = noise_pred(bundle, "rain")
    add_motion(bundle, "whole", altered_checkpoint(toy / "motions" / "rain", tmp_path / "whole", shift))
    remove_motion(bundle, "horse_run", default="whole")
    np.testing.assert_array_equal(noise_pred(bundle, "rain"), rain)


def test_weights_are_not_replaced_under_a_network_that_is_kept(
    toy: Path, bundle: Path, tmp_path: Path
) -> None:
    before = files_of(bundle)
    other = tmp_path / "sd"
    shutil.copytree(toy / "sd", other)
    (weights,) = (other / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with pytest.raises(BundleError, match="holds vae_encoder, whose weights this build would replace"):
        build_bundle(bundle, toy_options(toy, sd=other, motions=None, only=("vae_decoder",)))
    with pytest.raises(BundleError, match=r"holds \w+ in fp32, this build is in fp16.*Add --precision fp32"):
        build_bundle(bundle, toy_options(toy, precision="fp16", motions=None, only=("vae_decoder",)))
    assert files_of(bundle) == before


def test_commands_that_fail_make_no_folder(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        add_motion(tmp_path / "typo", "rain", toy / "motions" / "rain")
    with pytest.raises(BundleError, match="is not a bundle"):
        remove_motion(tmp_path / "typo", "rain")
    with pytest.raises(CheckpointError, match="a LAMP checkpoint"):
        build_bundle(tmp_path / "typo", toy_options(toy, motions={"x": toy / "sd"}))
    assert not (tmp_path / "typo").exists()
