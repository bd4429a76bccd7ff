# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify`: sound bundles pass, and every seeded fault is caught and named."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.verify import run as verify
from lamp_trt.benchmarks.verify.checks.check import Check, clip_check, follows, tensor_check
from lamp_trt.benchmarks.verify.checks.limits import YARDSTICK, Limit
from lamp_trt.benchmarks.verify.metrics import ClipDistance, Distance, clip_distance, distance, psnr_db, ssim
from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
from lamp_trt.benchmarks.verify.report import Report, VerificationError, report_text, require_passed
from lamp_trt.benchmarks.verify.run import verify_bundle
from lamp_trt.cli import main
from lamp_trt.engine.bundle.digests import file_digest
from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, read_manifest
from lamp_trt.engine.bundle.paths import MANIFEST
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import BundleError, CheckpointError, InputError
from tests.fixtures.toy import toy_options

MOTIONS = ("horse_run", "rain")
Rows = dict[str, list[dict[str, Any]]]


def checkpoints(toy: Path, *motions: str, sdxl: Path | None = None) -> Checkpoints:
    return Checkpoints(toy / "sd", {name: toy / "motions" / name for name in motions}, sdxl)


# --- sound bundles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(toy: Path, sdxl: Path, sdxl_bundle: Path) -> Report:
    """Of all networks, both motions and the first frame from text, two steps each."""
    given = checkpoints(toy, *MOTIONS, sdxl=sdxl)
    return verify_bundle(sdxl_bundle, VerifyOptions(given, num_inference_steps=2, num_threads=1))


def test_a_verification_that_fails_leaves_torch_its_threads(
    toy: Path, sdxl: Path, sdxl_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert torch.get_num_threads() == 3
        raise CheckpointError("out of luck")

    before = torch.get_num_threads()
    monkeypatch.setattr(verify, "exact_checks", fail)
    given = checkpoints(toy, *MOTIONS, sdxl=sdxl)
    with pytest.raises(CheckpointError, match="out of luck"):
        verify_bundle(sdxl_bundle, VerifyOptions(given, num_threads=3))
    assert torch.get_num_threads() == before


def test_a_sound_bundle_passes_on_every_rung(sound: Report) -> None:
    assert sound.failed == []
    assert sound.not_verified == []
    assert {check.group for check in sound.checks} == {
        "constants", "tokenizer", "weights", "networks", "steps", "clip"
    }  # fmt: skip
    networks = {check.name.split()[0] for check in sound.checks if check.group == "networks"}
    assert networks == set(sound_networks())
    for motion in MOTIONS:
        assert [c.name for c in sound.checks if c.motion == motion and c.group == "clip"] == ["frames"]
    assert sound.peak_memory_bytes > 100 << 20  # of the process, which may have run larger tests before
    require_passed(sound)


def sound_networks() -> tuple[str, ...]:
    from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS

    return (*VIDEO_NETWORKS, *FIRST_FRAME_NETWORKS)


def test_every_step_of_every_loop_is_reported(sound: Report) -> None:
    assert set(sound.steps) == {*MOTIONS, "first frame from text"}
    for rows in sound.steps.values():
        assert [(row.step, row.timestep) for row in rows] == [(0, 501), (1, 1)]
        for row in rows:
            assert row.own_free is None
            assert 0 < row.forced.rel_l2 <= 1e-4
            assert row.forced.cosine > 1 - 1e-8
            assert 0 < row.free.rel_l2 <= 2e-4
    later = sound.steps["rain"][1]
    assert later.forced.rel_l2 < later.free.rel_l2  # it did start from the reference's latents
    assert sound.steps["rain"][0].free.rel_l2 != sound.steps["horse_run"][0].free.rel_l2


def test_the_report_is_plain_json_and_a_table(sound: Report) -> None:
    document = json.loads(json.dumps(sound.to_json(), allow_nan=False))
    assert document["passed"] is True
    assert len(document["checks"]) == len(sound.checks)
    assert document["steps"]["rain"][0]["teacher_forced"]["finite"] is True
    assert document["settings"]["num_inference_steps"] == 2
    text = report_text(sound)
    assert f"{len(sound.checks)} of {len(sound.checks)} checks passed" in text
    assert "ok    clip       frames, rain" in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_what_is_not_given_is_listed_not_passed(toy: Path, toy_bundle: Path) -> None:
    options = VerifyOptions(checkpoints(toy), num_inference_steps=0, num_threads=1)
    report = verify_bundle(toy_bundle, options)
    assert report.failed == []
    assert report.not_verified == ["lamp_unet (give --motion)", "the loop and the clip (--steps 0)"]
    assert "not verified: lamp_unet (give --motion)" in report_text(report)


def test_fp16_is_held_to_twice_pytorchs_own_distance(toy: Path, tmp_path: Path) -> None:
    from lamp_trt.export.build import build_bundle

    options = toy_options(toy, precision="fp16", motions={}, only=("vae_encoder",))
    build_bundle(tmp_path / "fp16", options)
    report = verify_bundle(tmp_path / "fp16", VerifyOptions(checkpoints(toy), num_threads=1))
    assert report.failed == []
    rows = [check for check in report.checks if check.group == "networks"]
    assert [row.name for row in rows] == ["vae_encoder latent_mean", "vae_encoder latent_logvar"]
    for row in rows:
        assert 1e-5 < row.own["rel_l2"] < 1e-2
        assert row.limits == {"rel_l2": YARDSTICK * row.own["rel_l2"]}
        assert row.measured["rel_l2"] <= row.limits["rel_l2"]


@pytest.mark.slow
def test_a_whole_fp16_bundle_passes(toy: Path, sdxl: Path, tmp_path: Path) -> None:
    from lamp_trt.export.build import build_bundle

    build_bundle(tmp_path / "fp16", toy_options(toy, sdxl=sdxl, precision="fp16"))
    given = checkpoints(toy, *MOTIONS, sdxl=sdxl)
    report = verify_bundle(tmp_path / "fp16", VerifyOptions(given, num_inference_steps=4, num_threads=1))
    assert report.failed == []
    clips = [check for check in report.checks if check.group == "clip"]
    assert len(clips) == 3
    assert all(check.own["psnr_db"] > 30 for check in clips)
    assert all(row.own_forced is not None for rows in report.steps.values() for row in rows)


# --- seeded faults --------------------------------------------------------------------------------------


def faulty(
    bundle: Path,
    out: Path,
    change: Callable[[Path], None] = lambda path: None,
    change_manifest: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> Path:
    """A copy of `bundle` with a fault, whose manifest is true to it: nothing but its results is wrong."""
    shutil.copytree(bundle, out)
    change(out)
    manifest = change_manifest(read_manifest(out)[0])
    files = {
        path: FileEntry((out / path).stat().st_size, file_digest(out / path), entry.key)
        for path, entry in manifest.files.items()
    }
    (out / MANIFEST).write_bytes(replace(manifest, files=files).to_json())
    return out


def edit_tensors(path: Path, edit: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> None:
    """Overwrite tensors of a safetensors file with what `edit` gives for some of them."""
    weights = read_weight_file(path)
    replaced = edit({name: np.array(array) for name, array in weights.arrays().items()})
    with path.open("r+b") as f:
        for name, array in replaced.items():
            f.seek(weights.tensors[name].offset)
            f.write(array.tobytes())


def verified(
    bundle: Path, out: Path, given: Mapping[str, Path], capsys: pytest.CaptureFixture[str], steps: int
) -> tuple[int, str, Rows]:
    """Exit code, message and failed checks by group of the command line."""
    options = [f"--{name}={folder}" for name, folder in given.items() if name in ("sd", "sdxl")]
    for name, folder in given.items():
        if name not in ("sd", "sdxl"):
            options += ["--motion", f"{name}={folder}"]
    command = ["verify", str(bundle), *options, "--steps", str(steps), "--num-threads=1", "-q"]
    code = main([*command, "--json", "--out", str(out)])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert json.loads(out.read_text()) == report
    assert report["passed"] is (code == 0)
    failed: Rows = {}
    for check in report["checks"]:
        if not check["passed"]:
            failed.setdefault(check["group"], []).append(check)
    return code, captured.err, failed


def reversed_convolution(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    name = "decoder.conv_in.weight"
    return {name: tensors[name].ravel()[::-1].copy()}


def two_values_swapped(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    name = "decoder.conv_in.weight"
    values = tensors[name].ravel().copy()
    ends = [values.argmin(), values.argmax()]
    values[ends] = values[ends[::-1]]
    return {name: values}


@pytest.mark.parametrize("permute", [reversed_convolution, two_values_swapped])
def test_a_permuted_weight_is_caught_and_named(
    permute: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    toy: Path,
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = faulty(
        toy_bundle, tmp_path / "b", lambda path: edit_tensors(path / "weights" / "vae.safetensors", permute)
    )
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sd": toy / "sd"}, capsys, steps=0)
    assert code == 1
    assert "first of weights: vae_decoder: decoder.conv_in.weight in weights/vae.safetensors" in message
    assert "the right values in another order" in message
    assert failed.keys() == {"weights", "networks"}  # each would do alone
    (network,) = failed["networks"]
    assert network["name"] == "vae_decoder image"
    assert network["problem"].endswith("it follows from weights: vae_decoder")


def test_swapped_motion_tensors_are_caught_and_named_for_their_motion(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1.to_q.weight" for i in (0, 1))
    bundle = faulty(
        toy_bundle,
        tmp_path / "b",
        lambda path: edit_tensors(
            path / "motions" / "rain.safetensors", lambda t: {first: t[second], second: t[first]}
        ),
    )
    given = {name: toy / "motions" / name for name in MOTIONS}
    code, message, failed = verified(bundle, tmp_path / "r.json", given, capsys, steps=0)
    assert code == 1
    assert f"{first} in motions/rain.safetensors holds the values of {second}" in message
    assert {check["motion"] for checks in failed.values() for check in checks} == {"rain"}
    assert failed.keys() == {"weights", "networks"}


def test_a_graph_that_points_at_another_tensor_is_caught(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    names = ("decoder.mid_block.resnets.0.conv1.weight", "decoder.mid_block.resnets.0.conv2.weight")

    def swap(path: Path) -> None:
        model = onnx.load(path / "vae_decoder.onnx", load_external_data=False)
        one, two = (next(i for i in model.graph.initializer if i.name == name) for name in names)
        one.name, two.name = two.name, one.name
        (path / "vae_decoder.onnx").write_bytes(model.SerializeToString())

    bundle = faulty(toy_bundle, tmp_path / "b", swap)
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sd": toy / "sd"}, capsys, steps=0)
    assert code == 1
    assert f"{names[0]} in weights/vae.safetensors holds the values of {names[1]}" in message
    assert [check["name"] for check in failed["networks"]] == ["vae_decoder image"]


def test_a_wrong_scaling_factor_is_caught_in_the_manifest_and_in_the_clip(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = faulty(
        toy_bundle, tmp_path / "b", change_manifest=lambda m: replace(m, scaling_factors={"vae": 0.19})
    )
    given = {"sd": toy / "sd", "rain": toy / "motions" / "rain"}
    code, message, failed = verified(bundle, tmp_path / "r.json", given, capsys, steps=1)
    assert code == 1
    assert "scaling_factors: vae is 0.19 in bundle.json and 0.18215 in the checkpoint" in message
    assert failed.keys() == {"constants", "steps", "clip"}
    assert "first-frame latents" in [check["name"] for check in failed["steps"]]
    assert failed["clip"][0]["problem"].endswith("it follows from constants: scaling_factors")


def test_a_wrong_scheduler_value_is_caught_and_named(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = faulty(
        toy_bundle,
        tmp_path / "b",
        change_manifest=lambda m: replace(m, scheduler={**m.scheduler, "beta_end": 0.0125}),
    )
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sd": toy / "sd"}, capsys, steps=0)
    assert code == 1
    assert "scheduler: beta_end is 0.0125 in bundle.json and 0.012 in the checkpoint" in message
    assert failed.keys() == {"constants"}


def test_swapped_merges_are_caught_and_named(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(path: Path) -> None:
        merges = path / "tokenizer" / "merges.txt"
        lines = merges.read_text().splitlines()
        lines[40], lines[45] = lines[45], lines[40]
        merges.write_text("\n".join(lines) + "\n")

    bundle = faulty(toy_bundle, tmp_path / "b", swap)
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sd": toy / "sd"}, capsys, steps=0)
    assert code == 1
    assert "first of tokenizer: tokenizer: merge 40 of tokenizer is" in message
    assert failed.keys() == {"tokenizer"}


def with_first_frame(manifest: Manifest, **changes: Any) -> Manifest:
    assert manifest.first_frame is not None
    return replace(manifest, first_frame=replace(manifest.first_frame, **changes))


def test_faults_of_the_first_frame_are_caught_and_named(
    sdxl: Path, sdxl_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shift(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"conv_out.bias": 1 + tensors["conv_out.bias"]}

    bundle = faulty(
        sdxl_bundle,
        tmp_path / "b",
        lambda path: edit_tensors(path / "weights" / "sdxl_unet.safetensors", shift),
        lambda manifest: with_first_frame(manifest, force_zeros_for_empty_prompt=False),
    )
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sdxl": sdxl}, capsys, steps=1)
    assert code == 1
    assert "force_zeros_for_empty_prompt is False in bundle.json and True in the checkpoint" in message
    assert "conv_out.bias in weights/sdxl_unet.safetensors is wrong" in failed["weights"][0]["problem"]
    assert [check["name"] for check in failed["networks"]] == ["sdxl_unet noise_pred"]
    assert {"sdxl text embeddings", "sdxl final latents"} <= {check["name"] for check in failed["steps"]}


def test_a_wrong_scheduler_value_shows_in_the_steps_too(
    sdxl: Path, sdxl_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(manifest: Manifest) -> Manifest:
        assert manifest.first_frame is not None
        return with_first_frame(manifest, scheduler={**manifest.first_frame.scheduler, "beta_end": 0.0125})

    bundle = faulty(sdxl_bundle, tmp_path / "b", change_manifest=change)
    code, message, failed = verified(bundle, tmp_path / "r.json", {"sdxl": sdxl}, capsys, steps=2)
    assert code == 1
    assert "sdxl scheduler: beta_end is 0.0125 in bundle.json and 0.012 in the checkpoint" in message
    names = [check["name"].partition(",")[0] for check in failed["steps"]]
    assert names == ["sdxl single steps", "sdxl free running", "sdxl final latents"]
    assert failed["steps"][0]["problem"].endswith("it follows from constants: sdxl scheduler")


def test_values_that_are_not_finite_fail_instead_of_crashing(
    sdxl: Path, sdxl_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def poison(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"decoder.conv_in.bias": np.full_like(tensors["decoder.conv_in.bias"], np.nan)}

    bundle = faulty(
        sdxl_bundle,
        tmp_path / "b",
        lambda path: edit_tensors(path / "weights" / "sdxl_vae.safetensors", poison),
    )
    code, _, failed = verified(bundle, tmp_path / "r.json", {"sdxl": sdxl}, capsys, steps=1)
    assert code == 1
    assert failed["networks"][0]["measured"] == {
        "max_abs": None, "rel_l2": None, "cosine": 0.0, "finite": False
    }  # fmt: skip
    (clip,) = failed["clip"]
    assert "SDXL's VAE decoder returned values that are not finite" in clip["problem"]
    assert "it follows from weights: sdxl_vae_decoder" in clip["problem"]


# --- usage ----------------------------------------------------------------------------------------------


def test_bad_requests_are_refused_before_anything_runs(toy: Path, toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --motion or --sd"):
        verify_bundle(toy_bundle, VerifyOptions(Checkpoints()))
    with pytest.raises(BundleError, match="no motion 'unicorn'; known: horse_run, rain"):
        verify_bundle(toy_bundle, VerifyOptions(Checkpoints(motions={"unicorn": toy})))
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        verify_bundle(toy_bundle, VerifyOptions(Checkpoints(sd=tmp_path / "nowhere")))
    with pytest.raises(InputError, match="num_inference_steps is -1"):
        VerifyOptions(Checkpoints(), num_inference_steps=-1)
    out = tmp_path / "nowhere" / "r.json"
    assert main(["verify", str(toy_bundle), "--sd", str(toy / "sd"), "--out", str(out)]) == 2


# --- figures --------------------------------------------------------------------------------------------


def test_distances_of_known_arrays() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    far = distance(np.array([3.0, 4.5], np.float32), expected)
    assert (far.max_abs, far.scale, far.rel_l2) == (0.5, 4.0, 0.1)
    assert far.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    equal = distance(expected, expected)
    assert (equal.max_abs, equal.rel_l2, equal.cosine, equal.finite) == (0.0, 0.0, 1.0, True)
    broken = distance(np.array([3.0, np.nan]), expected)
    assert (broken.finite, broken.rel_l2) == (False, math.inf)
    with pytest.raises(ValueError, match="is compared with"):
        distance(np.zeros(1), expected)


def test_clip_distances_of_known_frames() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    frames[0, 0, 0, 0] = 100
    same = clip_distance(frames, frames)
    assert (same.psnr_db, same.max_levels, same.equal_share) == (math.inf, 0, 1.0)
    assert same.ssim == pytest.approx(1.0)
    other = frames.copy()
    other[0, 0, 0, 0] = 110
    near = clip_distance(other, frames)
    assert near.psnr_db == pytest.approx(10 * math.log10(255**2 / (100 / frames.size)))
    assert near.equal_share == 1 - 1 / frames.size
    assert near.max_levels == 10
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr_db(black, white) == 0.0
    assert ssim(black, white) == pytest.approx(6.5025 / (255**2 + 6.5025), rel=1e-3)
    noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
    assert ssim(frames[0], noise) < 0.5


LIMIT = Limit(max_abs=1e-3, rel_l2=1e-4)
GOOD = Distance(max_abs=1e-3, scale=1.0, rel_l2=1e-5, cosine=1.0, finite=True)


@pytest.mark.parametrize(
    ("ours", "own", "problem"),
    [
        (GOOD, None, ""),
        (replace(GOOD, rel_l2=2e-4), None, "rel_l2 2.0e-04 is past its limit 1.0e-04; why"),
        (replace(GOOD, max_abs=2e-3), None, "max_abs 2.0e-03 is past its limit 1.0e-03; why"),
        (replace(GOOD, max_abs=2e-3, scale=3.0), None, ""),
        (replace(GOOD, finite=False), None, "values are not finite; why"),
        (replace(GOOD, rel_l2=1e-2), replace(GOOD, rel_l2=6e-3), ""),
        (replace(GOOD, rel_l2=1e-2), replace(GOOD, rel_l2=4e-3), "past its limit 8.0e-03"),
        (GOOD, replace(GOOD, finite=False), "the yardstick's own result"),
    ],
)
def test_tensors_are_held_to_their_limit(ours: Distance, own: Distance | None, problem: str) -> None:
    check = tensor_check("networks", "x", "", ours, own, LIMIT, "why")
    assert check.passed is (not problem)
    assert problem in check.problem


CLIP = ClipDistance(psnr_db=60.0, ssim=1.0, max_levels=18, equal_share=0.995)


@pytest.mark.parametrize(
    ("ours", "own", "passes"),
    [
        (CLIP, None, True),
        (replace(CLIP, equal_share=0.98), None, False),
        (replace(CLIP, psnr_db=49.0), None, False),
        (replace(CLIP, psnr_db=35.0, equal_share=0.4, max_levels=99), replace(CLIP, psnr_db=41.0), True),
        (replace(CLIP, psnr_db=34.0), replace(CLIP, psnr_db=41.0), False),
    ],
)
def test_clips_are_held_to_their_limits(ours: ClipDistance, own: ClipDistance | None, passes: bool) -> None:
    check = clip_check("frames", "rain", ours, own, "why")
    assert check.passed is passes
    assert check.problem.endswith("why") is not passes


def test_a_failure_is_blamed_on_the_first_one_before_it() -> None:
    passed, failed = Check("weights", "a"), Check("weights", "b", "rain", problem="x")
    assert follows([passed, failed]) == "it follows from weights: b, rain"
    assert follows([passed]) == ""
    report = Report({}, {}, [passed, failed])
    with pytest.raises(VerificationError, match="1 of 2 checks failed, first of weights: b, rain: x"):
        require_passed(report)
