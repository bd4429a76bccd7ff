# SPDX-License-Identifier: Apache-2.0
"""Editing: inversion against the PyTorch reference, the whole edit, its cache and files, what is refused."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import lamp_trt
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.errors import Cancelled, InputError, SafetyError
from lamp_trt.export.checkpoints.tensors import load_text_encoder, load_vae
from lamp_trt.export.lamp import reference
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.runtime import inverted
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.edit import EditRequest, edit_video
from lamp_trt.runtime.inverted import Origin, cached, read_latents, write_latents
from lamp_trt.runtime.jobs import Job, job_from_sidecar, jobs_from_prompts_file, run_jobs
from lamp_trt.runtime.media.image import model_input
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.requests import ClipRequest
from tests.fixtures.openvino import HOST_BACKENDS
from tests.runtime.media.clips import moving_picture, write_clip
from tests.tolerances import EDIT_PSNR_DB, EDIT_PSNR_DIFFERENCE_DB, PIPELINE_REL_L2

FRAMES = moving_picture(6, 64, 64)
STEPS = 3


@pytest.fixture(scope="module", params=HOST_BACKENDS)
def any_pipe(request: pytest.FixtureRequest, toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1, backend=request.param)


@pytest.fixture(scope="module")
def pipe(toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("editing") / "clip.mp4", FRAMES)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def inversions(pipe: LampPipeline, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The motions of all inversions that were made."""
    made: list[str] = []
    invert = pipe.invert

    def counted(frames: np.ndarray, **options: Any) -> np.ndarray:
        made.append(options["motion"])
        return invert(frames, **options)

    monkeypatch.setattr(pipe, "invert", counted)
    return made


def request(video: Path, **changes: Any) -> EditRequest:
    settings = {"num_inference_steps": STEPS, **changes.pop("settings", {})}
    clip = ClipRequest(video, changes.pop("start", 0), changes.pop("every", 1))
    return EditRequest(
        **{
            "prompt": "a horse",
            "clip": clip,
            "config": GenerationConfig(**settings),
            "motion": "rain",
            **changes,
        }
    )


# --- inversion --------------------------------------------------------------------------------------------


class Reference:
    """The toy checkpoints in PyTorch, with the text of the empty prompt."""

    def __init__(self, toy: Path, motion: str, scheduler: dict[str, Any]) -> None:
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(toy / "sd" / "tokenizer")
        ids = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        self.vae, self.scheduler = load_vae(toy / "sd", torch.float32), scheduler
        self.unet = load_lamp_unet(toy / "motions" / motion, torch.float32)
        self.text = reference.encode_text(load_text_encoder(toy / "sd", torch.float32), ids)

    def encoded(self, frames: np.ndarray) -> torch.Tensor:
        mean = torch.zeros(1, 4, 8, 8)
        images = [torch.from_numpy(model_input(frame)) for frame in frames]
        return torch.cat([reference.encode_first_frame(self.vae, image, mean) for image in images], dim=2)

    def inverted(self, clip: torch.Tensor, steps: int) -> torch.Tensor:
        return reference.ddim_inversion(
            self.unet, clip, self.text, num_inference_steps=steps, scheduler_config=self.scheduler
        )[-1]


@pytest.fixture(scope="module")
def torch_reference(toy: Path, pipe: LampPipeline) -> Reference:
    return Reference(toy, "rain", dict(pipe.bundle.manifest.scheduler))


def test_an_inversion_is_the_references(any_pipe: LampPipeline, torch_reference: Reference) -> None:
    ours = any_pipe.invert(FRAMES[:4], motion="rain", num_inference_steps=10)
    wanted = torch_reference.inverted(torch_reference.encoded(FRAMES[:4]), 10)
    assert ours.dtype == np.float32
    assert distance(ours, wanted.numpy()).rel_l2 <= PIPELINE_REL_L2


def psnr(frames: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((frames.astype(float) - wanted) ** 2).mean()))


def test_an_edit_without_a_change_comes_back_near_the_clip(
    any_pipe: LampPipeline, torch_reference: Reference, video: Path
) -> None:
    """As near as the reference's own inversion and loop, without guidance and matching."""
    settings = {"num_inference_steps": 20, "guidance_scale": 1.0, "adain": "none", "histogram": "none"}
    made = edit_video(any_pipe, replace(request(video, settings=settings), prompt=""))
    clip = torch_reference.encoded(FRAMES[:4])
    latents = reference.denoise(
        torch_reference.unet,
        clip[:, :, :1],
        torch_reference.inverted(clip, 20),
        torch.cat([torch_reference.text] * 2),
        num_inference_steps=20,
        guidance_scale=1.0,
        mix_noise=False,
        adain="none",
        scheduler_config=torch_reference.scheduler,
    )
    wanted = reference.frames_from_latents(torch_reference.vae, latents).numpy()
    decoded = reference.frames_from_latents(torch_reference.vae, clip).numpy()
    ours, theirs = psnr(made.frames, decoded), psnr(wanted, decoded)
    print(f"ours {ours:.2f} dB, the reference's {theirs:.2f} dB")
    assert ours >= EDIT_PSNR_DB
    assert abs(ours - theirs) <= EDIT_PSNR_DIFFERENCE_DB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": FRAMES}, "6 frames were given; this bundle's videos have 4"),
        ({"frames": FRAMES[:4].astype(float)}, r"frames are float64 \(4, 64, 64, 3\)"),
        ({"frames": FRAMES[0]}, r"frames are uint8 \(64, 64, 3\)"),
        ({"frames": [FRAMES[0]]}, "frames are a list"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"motion": 3}, "motion is 3"),
        ({"progress": 3}, "progress is 3"),
    ],
)
def test_bad_arguments_of_an_inversion_are_refused(
    pipe: LampPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipe.invert(**{"frames": FRAMES[:4], **arguments})


def test_frames_of_another_size_are_fitted(pipe: LampPipeline) -> None:
    small = pipe.invert(FRAMES[:4, ::2, ::2], num_inference_steps=1, fit="crop")
    assert small.shape == (1, 4, 4, 8, 8)


# --- the whole edit ---------------------------------------------------------------------------------------


def test_both_halves_report_and_the_first_frame_is_the_edited_one(pipe: LampPipeline, video: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    previews: list[tuple[str, int]] = []
    picture = 255 - FRAMES[0]
    made = edit_video(
        pipe,
        request(video, first_frame=picture, start=1),
        progress=lambda *step: seen.append(step),
        preview=lambda stage, step, _: previews.append((stage, step)),
        preview_interval=0,
    )
    assert previews == [("denoise", step) for step in range(STEPS)]
    assert seen == [(stage, done, STEPS) for stage in ("invert", "denoise") for done in range(STEPS + 1)]
    np.testing.assert_array_equal(made.first_frame, picture)
    assert next(iter(made.timings)) == "invert"
    assert made.timings["total"] == pytest.approx(sum(made.timings.values()) / 2)
    by_hand = pipe(
        "a horse",
        motion="rain",
        first_frame=picture,
        num_inference_steps=STEPS,
        noise=pipe.invert(read_frames(video, 1), motion="rain", num_inference_steps=STEPS),
        mix_noise=False,
    )
    np.testing.assert_array_equal(made.frames, by_hand.frames)


def read_frames(video: Path, start: int = 0) -> np.ndarray:
    from lamp_trt.runtime.media.clip.reader import read_clip

    return read_clip(ClipRequest(video, start), 4, 64, 64).frames


@pytest.mark.parametrize("stage", ["invert", "denoise"])
def test_an_edit_is_cancelled_in_either_half(pipe: LampPipeline, video: Path, stage: str) -> None:
    token = threading.Event()

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and done == 1:
            token.set()

    with pytest.raises(Cancelled):
        edit_video(pipe, request(video), progress=stop, cancel=token)
    assert edit_video(pipe, request(video)).frames.shape == (4, 64, 64, 3)


def test_a_flagged_first_frame_is_refused_before_the_inversion(
    safe_bundle: Path, safe_toy: Path, video: Path, tmp_path: Path
) -> None:
    pipeline = lamp_trt.load(safe_bundle, num_threads=1)
    seen: list[str] = []
    asked = request(video, first_frame=safe_toy / "flagged.png", latents=tmp_path / "kept.safetensors")
    with pytest.raises(SafetyError, match="the first frame is refused: the safety checker flags it"):
        edit_video(pipeline, asked, progress=lambda stage, *_: seen.append(stage))
    assert seen == []
    assert not [*tmp_path.rglob("*.safetensors")]
    reported = replace(asked, config=GenerationConfig(num_inference_steps=1, safety="report"))
    assert edit_video(pipeline, reported).settings["safety_flagged"] is True
    another = tmp_path / "another.safetensors"  # the clip's latents are in the cache now
    with pytest.raises(SafetyError, match="the first frame is refused"):
        edit_video(pipeline, replace(asked, config=GenerationConfig(num_inference_steps=1), latents=another))
    assert not another.exists()


# --- cache and files --------------------------------------------------------------------------------------


def test_a_clip_is_inverted_once_for_all_its_edits(
    pipe: LampPipeline, video: Path, inversions: list[str], cache_home: Path
) -> None:
    first = edit_video(pipe, request(video))
    again = edit_video(pipe, request(video))
    np.testing.assert_array_equal(first.frames, again.frames)
    edit_video(pipe, replace(request(video, settings={"seed": 3}, first_frame=FRAMES[5]), prompt="x"))
    assert inversions == ["rain"]
    for other in (
        {"motion": "horse_run"},
        {"settings": {"num_inference_steps": 2}},
        {"start": 1},
        {"settings": {"fit": "crop", "num_inference_steps": 1}},
    ):
        edit_video(pipe, request(video, **other))
    assert inversions == ["rain", "horse_run", "rain", "rain", "rain"]
    assert len([*(cache_home / "lamp-trt" / "inversions").iterdir()]) == 5


def test_a_damaged_cache_file_is_said_and_made_again(
    pipe: LampPipeline,
    video: Path,
    inversions: list[str],
    cache_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    edit_video(pipe, request(video))
    (path,) = (cache_home / "lamp-trt" / "inversions").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    edit_video(pipe, request(video))
    assert "cannot be read as safetensors" in caplog.text
    assert len(inversions) == 2
    assert path.read_bytes() == whole


def test_the_oldest_cache_files_are_removed(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted, "_KEPT_FILES", 2)
    for steps in (1, 2, 3):
        inverted.cache(LATENTS, replace(ORIGIN, steps=steps))
    assert [cached(replace(ORIGIN, steps=steps)) is None for steps in (1, 2, 3)] == [True, False, False]


def test_latents_are_kept_and_given_by_a_file(
    pipe: LampPipeline, video: Path, inversions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(video, latents=tmp_path / "clip.safetensors")
    first = edit_video(pipe, asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    again = edit_video(pipe, asked)
    assert len(inversions) == 1
    np.testing.assert_array_equal(first.frames, again.frames)
    with pytest.raises(InputError, match="belongs to another motion: 'rain', not 'horse_run'"):
        edit_video(pipe, replace(asked, motion="horse_run"))


SHAPE = (1, 4, 4, 8, 8)
ORIGIN = Origin("c" * 64, "b" * 64, "rain", 10, SHAPE, "onnxruntime on the CPU")
LATENTS = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def written(path: Path, latents: np.ndarray = LATENTS, **changes: Any) -> None:
    write_latents(path, latents, replace(ORIGIN, **changes))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bundle": (lambda path: written(path, bundle="x"), "belongs to another bundle: 'x', not 'bbbb"),
    "motion": (lambda path: written(path, motion="horse_run"), "belongs to another motion: 'horse_run'"),
    "clip": (lambda path: written(path, clip="x"), "belongs to another clip, or other frames of it"),
    "steps": (lambda path: written(path, steps=50), "belongs to another number of steps: 50, not 10"),
    "size": (
        lambda path: written(path, shape=(1, 4, 24, 8, 8)),
        r"belongs to another size: \[1, 4, 24, 8, 8\]",
    ),
    "lied size": (lambda path: written(path, np.zeros((9, 9), np.float32)), r"holds latents of \(9, 9\)"),
    "NaN": (lambda path: written(path, LATENTS * np.float32(np.nan)), "holds NaN or infinity"),
    "no origin": (lambda path: save_file({"latents": LATENTS}, path), "does not say what it belongs to"),
    "other tensor": (
        lambda path: save_file({"x": LATENTS}, path, metadata()),
        "does not hold the one tensor",
    ),
    "float64": (lambda path: save_file({"latents": LATENTS.astype(float)}, path, metadata()), "holds F64"),
    "nested": (
        lambda path: save_file({"latents": LATENTS}, path, {**metadata(), "origin": "[" * 10**5}),
        "cannot be read: its origin",
    ),
    "a list": (
        lambda path: save_file({"latents": LATENTS}, path, {**metadata(), "origin": "[]"}),
        "another clip",
    ),
    "text": (lambda path: path.write_text("hello"), "cannot be read as safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as safetensors"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "cannot be read as safetensors"),
}


def metadata() -> dict[str, str]:
    from dataclasses import asdict

    return {"format": "lamp-trt inverted latents 1", "origin": json.dumps(asdict(ORIGIN))}


@pytest.mark.parametrize("kind", HOSTILE)
def test_latents_that_do_not_belong_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.safetensors"
    make, message = HOSTILE[kind]
    make(path)
    with pytest.raises(InputError, match=message) as refusal:
        read_latents(path, ORIGIN)
    assert len(str(refusal.value)) < 1000
    assert str(refusal.value).count("the inverted latents") == 1


def test_latents_of_another_runner_are_taken_from_a_file_but_not_from_the_cache(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors")
    other = replace(ORIGIN, runner="openvino on the CPU")
    np.testing.assert_array_equal(read_latents(tmp_path / "a.safetensors", other), LATENTS)
    inverted.cache(LATENTS, ORIGIN)
    assert cached(ORIGIN) is not None
    assert cached(other) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": Path("a.npz")}, "does not end in .safetensors"),
        ({"latents": "a.npz"}, "does not end in .safetensors"),
        ({"latents": 3}, "expected a path"),
        ({"motion": 3}, "motion is 3; expected a string"),
        ({"prompt": b"a horse"}, "prompt is b'a horse'"),
        ({"clip": "clip.mp4"}, "expected a ClipRequest"),
        ({"latents": Path("/nowhere/a.safetensors")}, "cannot be written"),
        ({"settings": {"first_frame_prompt": "x"}}, "leave first_frame_prompt out"),
    ],
)
def test_requests_are_checked_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        request(Path("clip.mp4"), **changes)


def test_numpy_s_scalars_and_paths_as_text_become_python_s(tmp_path: Path) -> None:
    made = request(
        Path("clip.mp4"),
        start=np.int64(1),
        every=np.uint8(2),
        prompt=np.str_("a horse"),
        motion=np.str_("rain"),
        latents=str(tmp_path / "a.safetensors"),
    )
    assert [type(value) for value in (made.clip.start, made.clip.every, made.prompt, made.motion)] == [
        int, int, str, str
    ]  # fmt: skip
    assert made.latents == tmp_path / "a.safetensors"


# --- jobs and sidecars ------------------------------------------------------------------------------------


def test_a_sidecar_repeats_the_edit(
    pipe: LampPipeline, video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = ClipRequest(video, 1, 1)
    options = {"num_inference_steps": STEPS, "seed": 4, "fit": "crop"}
    job = Job("a horse", "rain", 255 - FRAMES[0], options, tmp_path / "a.gif", clip=clip)
    ((path, first),) = run_jobs(pipe, [job])
    repeated = job_from_sidecar(path.with_name("a.gif.json"))
    assert repeated.clip == clip
    ((_, again),) = run_jobs(pipe, [replace(repeated, out=tmp_path / "b.gif")])
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.settings == again.settings
    assert "not those of the edit" not in caplog.text
    moved = replace(repeated, clip=ClipRequest(video, 0), out=tmp_path / "c.gif")
    assert len([*run_jobs(pipe, [moved])]) == 1
    assert "the clip's frames are not those of the edit to repeat" in caplog.text


def test_job_files_edit_clips_next_to_them(pipe: LampPipeline, video: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "video": video.name, "start": 1, "out": str(tmp_path / "a.gif")},
        {"prompt": "b", "video": video.name, "every": 2, "out": str(tmp_path / "b.gif")},
    ]
    jobs_file = video.with_name("jobs.jsonl")
    jobs_file.write_text("\n".join(map(json.dumps, lines[:1])))
    jobs = jobs_from_prompts_file(jobs_file, Job("", options={"num_inference_steps": 1}))
    assert jobs[0].clip == ClipRequest(video, 1)
    assert [path.name for path, _ in run_jobs(pipe, jobs)] == ["a.gif"]
    jobs_file.write_text("\n".join(map(json.dumps, lines)))
    short = jobs_from_prompts_file(jobs_file, Job("", options={"num_inference_steps": 1}))
    with pytest.raises(InputError, match="takes 3; this bundle's videos have 4"):
        [*run_jobs(pipe, short[1:])]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 1}, "line 1: start is of an edit, but no `video` is given"),
        ({"video": 3}, "video is 3; expected a string"),
        ({"video": "x", "every": 0}, "line 1: every is 0"),
        ({"video": "x", "start": "1"}, "start is '1'"),
    ],
)
def test_bad_fields_of_a_job_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps({"prompt": "x", **fields}))
    with pytest.raises(InputError, match=message):
        jobs_from_prompts_file(path, Job(""))


def test_a_missing_clip_is_found_before_any_video_is_made(pipe: LampPipeline, tmp_path: Path) -> None:
    plain = Job("x", first_frame=FRAMES[0], out=tmp_path / "a.gif", options={"num_inference_steps": 1})
    missing = replace(plain, clip=ClipRequest(tmp_path / "no.mp4"), out=tmp_path / "b.gif")
    with pytest.raises(InputError, match=r"the video '.*no.mp4' does not exist"):
        [*run_jobs(pipe, [plain, missing])]
    assert not [*tmp_path.glob("*.gif")]


def test_what_is_taken_is_said(pipe: LampPipeline, video: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lamp_trt"):
        edit_video(pipe, request(video, settings={"num_inference_steps": 1}))
        edit_video(pipe, request(video, settings={"num_inference_steps": 1}))
    assert "frames 0 to 3 of 6 are taken" in caplog.text
    assert "--fps 25 keeps its pace" in caplog.text
    assert "the clip's own first frame is kept" in caplog.text
    assert "this clip was inverted before" in caplog.text
