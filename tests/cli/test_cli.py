# SPDX-License-Identifier: Apache-2.0
"""The `lamp-trt` command as a user types it: results, exit codes, what is left behind."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lamp_trt.cli import INTERRUPTED, main
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.runtime.media.video import Video


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "first.png"
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(picture, (100, 80)))
    return path


def generate(bundle: Path, *arguments: object) -> int:
    return main(
        ["generate", "-q", f"--bundle={bundle}", "--num-threads=1", "--steps=1", *map(str, arguments)]
    )


def test_generate_writes_a_video_and_says_where(
    toy_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.mp4"
    assert generate(toy_bundle, "a horse runs", "--first-frame", image, "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    capture = cv2.VideoCapture(str(out))
    assert [int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH)] == [4, 64]


def test_the_same_command_writes_the_same_bytes(toy_bundle: Path, image: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        assert generate(toy_bundle, "rain", "--first-frame", image, "--out", tmp_path / name, "--seed=7") == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_sidecar_repeats_its_video_without_the_image(toy_bundle: Path, image: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a.gif", tmp_path / "again.gif"
    options = ["--seed=9", "--adain=first_frame", "--fit=crop", "--motion=rain", "--fps=4"]
    assert generate(toy_bundle, "rain", "--first-frame", image, "--out", out, *options) == 0
    image.unlink()
    assert generate(toy_bundle, "--from", f"{out}.json", "--out", again) == 0
    assert again.read_bytes() == out.read_bytes()
    varied = tmp_path / "varied.gif"
    assert generate(toy_bundle, "--from", f"{out}.json", "--seed=10", "--out", varied) == 0
    changed = {"seed": 10}
    settings, original = (json.loads(Path(f"{path}.json").read_text()) for path in (varied, out))
    assert settings == {**original, **changed}


def test_several_prompts_and_motions_in_one_run(
    toy_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a horse runs\n\nRain, in Lille!\n")
    folder = tmp_path / "videos"
    arguments = ["--prompts", prompts, "--motion=horse_run", "--motion=rain", "--format=gif"]
    assert generate(toy_bundle, *arguments, "--first-frame", image, "--out", folder) == 0
    printed = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        "000-horse_run-a-horse-runs.gif",
        "001-horse_run-rain-in-lille.gif",
        "002-rain-a-horse-runs.gif",
        "003-rain-rain-in-lille.gif",
    ]
    assert all((folder / name).stat().st_size > 0 for name in printed)


def test_json_lines_set_each_video(toy_bundle: Path, image: Path, tmp_path: Path) -> None:
    jobs = [
        {
            "prompt": "a",
            "motion": "rain",
            "seed": 1,
            "first_frame": image.name,
            "out": str(tmp_path / "a.webp"),
        },
        {"prompt": "b", "adain": "none", "first_frame": image.name, "out": str(tmp_path / "b.webp")},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert generate(toy_bundle, "--prompts", tmp_path / "jobs.jsonl") == 0
    settings = [json.loads((tmp_path / f"{name}.webp.json").read_text()) for name in "ab"]
    assert [(s["motion"], s["seed"], s["adain"]) for s in settings] == [
        ("rain", 1, "schedule"),
        ("horse_run", 0, "none"),
    ]


def paint_it_grey(video: Video) -> Video:
    return Video(np.full_like(video.frames, 128), video.first_frame, video.latents)


def refuse(video: Video) -> Video:
    raise RuntimeError("not this one")


def test_a_hook_sees_a_video_before_it_is_saved(toy_bundle: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    arguments = ["x", "--first-frame", image, "--before-save"]
    assert generate(toy_bundle, *arguments, "tests.cli.test_cli:paint_it_grey", "--out", out) == 0
    assert (cv2.imread(str(out / "frame_000.png")) == 128).all()
    with pytest.raises(RuntimeError, match="not this one"):
        generate(
            toy_bundle,
            "x",
            "--first-frame",
            image,
            "--out",
            tmp_path / "no.mp4",
            "--before-save=tests.cli.test_cli:refuse",
        )
    assert not (tmp_path / "no.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x", "--out=/nowhere/x.mp4"], 2, "/nowhere"),
        (["x", "--out=x.avi"], 2, "ends in '.avi'"),
        (["x", "--motion=unicorn"], 1, "no motion 'unicorn'; known: horse_run, rain"),
        (["x", "--steps=0"], 2, "num_inference_steps is 0"),
        (["x", "--seed=-1"], 2, "seed is -1"),
        (["x", "--first-frame=/nowhere.png"], 2, "/nowhere.png"),
        (["x", "--before-save=nothing"], 2, "expected MODULE:FUNCTION"),
        ([], 2, "give either prompts"),
        (["--from=/nowhere.json"], 2, "/nowhere.json"),
        (["x", "y", "--out=z.mp4"], 2, "name a folder"),
        (["x", "--fps=0"], 2, "fps is 0"),
        (["x", "--num-threads=0"], 2, "num_threads is 0"),
        (["x", "--out=first.png"], 2, "ends in '.png'"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    toy_bundle: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    if not any(a.startswith("--first-frame") for a in arguments):
        arguments = [*arguments, f"--first-frame={image}"]
    assert main(["generate", "-q", f"--bundle={toy_bundle}", "--steps=1", *arguments]) == code
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_argparse_refuses_unknown_choices(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        generate(toy_bundle, "x", "--preset=mine")
    assert stop.value.code == 2
    assert "official" in capsys.readouterr().err


def test_inspect_describes_a_bundle(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(toy_bundle), "--verify-files"]) == 0
    text = capsys.readouterr().out
    assert "64x64, 4 frames" in text
    assert "every byte checked" in text
    assert main(["inspect", str(toy_bundle), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["digest"] == Bundle.open(toy_bundle).digest
    assert summary["networks"]["lamp_unet"]["inputs"]["sample"] == ["float32", 2, 4, 4, 8, 8]


def test_inspect_names_a_damaged_file(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy_bundle, copy)
    damaged = copy / "motions" / "rain.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert main(["inspect", str(copy), "--verify-files"]) == 1
    assert "motions/rain.safetensors" in capsys.readouterr().err


def test_motions_are_listed_added_and_removed(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = str(shutil.copytree(toy_bundle, tmp_path / "copy"))
    assert main(["motion", "add", copy, f"storm={toy / 'motions' / 'rain'}", "-q"]) == 0
    capsys.readouterr()
    assert main(["motion", "list", copy, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [(row["motion"], row["default"]) for row in rows] == [
        ("horse_run", True),
        ("rain", False),
        ("storm", False),
    ]
    assert main(["motion", "remove", copy, "storm", "-q"]) == 0
    assert main(["motion", "remove", copy, "storm", "-q"]) == 2
    assert "no motion 'storm'" in capsys.readouterr().err


def test_a_motion_without_a_name_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["build", f"--out={tmp_path / 'b'}", "--motion=/somewhere"]) == 2
    assert "expected NAME=DIR" in capsys.readouterr().err


def test_ctrl_c_in_a_build_exits_130_and_a_second_build_completes(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = ["--only", "vae_encoder", "vae_decoder", "--height=64", "--width=64"]
    command = [sys.executable, "-m", "lamp_trt", "build", f"--sd={toy / 'sd'}", *options, f"--out={out}"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored if we run in the background
    )
    assert process.stderr is not None
    with process.stderr as stderr:
        for line in stderr:
            if "vae_encoder.onnx" in line:
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                break
        rest = stderr.read()
    assert process.wait() in (INTERRUPTED, -signal.SIGINT), rest  # a shell shows both as 130
    assert "interrupted" in rest
    assert not (out / "bundle.json").exists()
    assert not list(out.rglob("*.lamp-tmp"))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert set(Bundle.open(out).manifest.networks) == {"vae_encoder", "vae_decoder"}


def test_engines_are_built_by_options_that_reach_their_builder(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from lamp_trt.engine.backends.tensorrt import build as tensorrt_build
    from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
    from lamp_trt.engine.bundle.reader import Bundle

    asked: list[tuple[Path, TensorRtOptions, Path | None]] = []

    def build_engines(bundle: Bundle, options: TensorRtOptions, engine_dir: Path | None) -> list[Any]:
        asked.append((bundle.path, options, engine_dir))
        return []

    monkeypatch.setattr(tensorrt_build, "build_engines", build_engines)
    command = ["build", f"--out={toy_bundle}", "--backend=tensorrt", f"--engine-dir={tmp_path}", "--json"]
    command += [
        "--only",
        "lamp_unet",
        "vae_decoder",
        "--no-refit",
        "--workspace=1.5",
        "--optimization-level=4",
    ]
    command += ["--profile=vae_decoder.latents=1x4x8x8:2x4x8x8:4x4x8x8", "--device=cuda:1"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"engines": []}
    ((path, options, folder),) = asked
    assert (path, folder) == (toy_bundle, tmp_path)
    assert options.networks == ("lamp_unet", "vae_decoder")
    assert options.refit is False
    assert (options.workspace_bytes, options.optimization_level, options.device) == (3 << 29, 4, 1)
    assert options.profiles[0].greatest == (4, 4, 8, 8)
    for wrong, message in (
        (["--device=cpu"], "device is 'cpu'; TensorRT engines are for GPUs"),
        (["--optimization-level=6"], "optimization level is 6; choose 0"),
        (["--profile=vae_decoder"], "expected NETWORK.INPUT=LEAST:OPTIMAL:GREATEST"),
    ):
        assert main(["build", f"--out={toy_bundle}", "--backend=tensorrt", *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device=gpu"], 2, "device is 'gpu'; choose 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (
            ["--backend=magic"],
            2,
            "backend is 'magic'; on the CPU choose 'auto', openvino, onnxruntime, ",
        ),
        (["--backend=tensorrt"], 2, "backend is 'tensorrt'; on the CPU choose"),
        (["--device=cuda", "--num-threads=2"], 2, "num_threads is 2, but on a GPU nothing uses it"),
        (
            ["--resident-motions=pinned"],
            2,
            "resident_motions is 'pinned', which is TensorRT's",
        ),
        (["--engine-dir=/nowhere"], 2, "engine_dir is '/nowhere', not a folder"),
        (["--expect-bundle", "0" * 64], 1, "expected 0000"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(
    toy_bundle: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", f"--bundle={toy_bundle}", "--first-frame=x.png", *arguments]) == code
    assert message in capsys.readouterr().err


def test_inspect_shows_the_layers_of_an_engine(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lamp_trt.engine.backends.tensorrt import layers as tensorrt_layers

    def plan_layers(bundle: Any, network: str, *, engine_dir: Path | None) -> list[Any]:
        assert (bundle.path, network, engine_dir) == (toy_bundle, "vae_decoder", None)
        return [tensorrt_layers.PlanLayer("conv_in", "Convolution", "sm80_xmma", ("y",))]

    monkeypatch.setattr(tensorrt_layers, "plan_layers", plan_layers)
    assert main(["inspect", str(toy_bundle), "--layers=vae_decoder"]) == 0
    assert "1 layers: 1 Convolution" in capsys.readouterr().out
    assert main(["inspect", str(toy_bundle), "--layers=vae_decoder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "conv_in"
