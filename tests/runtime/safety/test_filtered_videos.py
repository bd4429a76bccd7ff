# SPDX-License-Identifier: Apache-2.0
"""The toy's safety checker in a pipeline: what is flagged, what passes, what it costs, what is written."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.engine.errors import EngineError, InputError, SafetyError
from lamp_trt.export.toy.safety import flagged_picture
from lamp_trt.runtime.jobs import Job, job_from_sidecar, run_jobs
from lamp_trt.runtime.media.image import load_first_frame
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline

PROMPT = "a horse runs on the road"
SIZES = [(64, 96), (96, 64), (64, 64), (320, 512), (512, 320), (128, 640), (200, 264), (720, 1280)]


@pytest.fixture(scope="module")
def pipe(safe_bundle: Path) -> Iterator[LampPipeline]:
    with lamp_trt.load(safe_bundle, num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def unfiltered(toy_bundle: Path) -> Iterator[LampPipeline]:
    with lamp_trt.load(toy_bundle, num_threads=1) as loaded:
        yield loaded


def make(pipe: LampPipeline, picture: Any, **options: Any) -> Video:
    return pipe(PROMPT, first_frame=picture, **{"num_inference_steps": 1, **options})


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_the_flagged_picture_is_flagged_at_every_size(
    pipe: LampPipeline, safe_toy: Path, size: tuple[int, int], fit: Any
) -> None:
    fitted = load_first_frame(safe_toy / "flagged.png", *size, fit)
    assert pipe.flags(fitted[None])
    assert pipe.flags(fitted[None], "official")


def other_pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    colours = {
        name: np.full((64, 64, 3), level, np.uint8)
        for name, level in {"black": 0, "grey": 127, "white": 255}.items()
    }
    named = {"red": (255, 0, 0), "blue": (0, 0, 255), "magenta": (255, 0, 255), "tomato": (255, 99, 71)}
    colours |= {name: np.full((64, 64, 3), level, np.uint8) for name, level in named.items()}
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (64, 64, 3))
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    return {**colours, "ramp": ramp, "noise": noise, "synthetic": synthetic_picture(64, 96)}


@pytest.mark.parametrize(("name", "picture"), other_pictures().items(), ids=lambda value: str(value)[:9])
def test_other_pictures_pass(pipe: LampPipeline, name: str, picture: np.ndarray) -> None:
    assert not pipe.flags(picture[None])


def test_a_video_that_passes_is_as_without_a_checker(pipe: LampPipeline, unfiltered: LampPipeline) -> None:
    picture = synthetic_picture(64, 64)
    filtered, plain = make(pipe, picture), make(unfiltered, picture)
    np.testing.assert_array_equal(filtered.frames, plain.frames)
    assert filtered.settings["safety_flagged"] is False
    assert plain.settings["safety_flagged"] is None
    assert {"first_frame_safety", "safety"} == filtered.timings.keys() - plain.timings.keys()


def test_a_flagged_first_frame_is_refused_before_the_loop(pipe: LampPipeline) -> None:
    stages: list[str] = []
    with pytest.raises(SafetyError, match=r"^the first frame is refused"):
        make(pipe, flagged_picture(), progress=lambda stage, done, total: stages.append(stage))
    assert stages == []


def test_a_video_that_becomes_flagged_is_refused(pipe: LampPipeline, unfiltered: LampPipeline) -> None:
    """Its first frame passes; the latents of another video take the place of the last step's."""
    flagged = make(unfiltered, flagged_picture(), histogram="none")
    assert pipe.flags(flagged.frames)

    def replace_latents(*_: Any) -> dict[str, Any]:
        return {"latents": flagged.latents}

    options: dict[str, Any] = {"callback_on_step_end": replace_latents, "histogram": "none", "adain": "none"}
    with pytest.raises(SafetyError, match=r"^the video is refused"):
        make(pipe, synthetic_picture(64, 64), **options)
    reported = make(pipe, synthetic_picture(64, 64), safety="report", **options)
    assert reported.settings["safety_flagged"] is True


@pytest.mark.parametrize(("mode", "flagged"), [("report", True), ("off", None)])
def test_other_modes_give_the_video(pipe: LampPipeline, mode: Any, flagged: bool | None) -> None:
    video = make(pipe, flagged_picture(), safety=mode)
    assert (video.settings["safety"], video.settings["safety_flagged"]) == (mode, flagged)


@pytest.mark.parametrize("mode", ["refuse", "report"])
def test_a_bundle_without_a_checker_cannot_be_told_to_check(unfiltered: LampPipeline, mode: Any) -> None:
    with pytest.raises(InputError, match="has no safety checker"):
        make(unfiltered, synthetic_picture(64, 64), safety=mode)
    with pytest.raises(InputError, match="has no safety checker"):
        unfiltered.flags(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("mode", ["", "on", "Refuse", 1, True, b"off"])
def test_unknown_modes_are_refused(pipe: LampPipeline, mode: Any) -> None:
    with pytest.raises(InputError, match=r"safety is .*; choose one of refuse, report, off"):
        make(pipe, flagged_picture(), safety=mode)


def test_an_unknown_crop_is_refused(pipe: LampPipeline) -> None:
    crops: Any = "centre"
    with pytest.raises(InputError, match="safety_crops is 'centre'; choose one of all, official"):
        make(pipe, flagged_picture(), safety_crops=crops)


@pytest.mark.parametrize(
    "frames",
    [None, [], np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3)), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_only_frames_are_judged(pipe: LampPipeline, frames: Any) -> None:
    with pytest.raises(InputError, match=r"expected (uint8|a NumPy array)"):
        pipe.flags(frames)


def test_a_checker_that_does_not_load_refuses(safe_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise EngineError("no memory for it.")

    with lamp_trt.load(safe_bundle, num_threads=1) as pipe:
        monkeypatch.setattr("lamp_trt.runtime.load.Place.host_engine", fail)
        with pytest.raises(SafetyError, match=r"the safety checker failed, .*: no memory for it"):
            make(pipe, synthetic_picture(64, 64))


def jobs_of(folder: Path, count: int) -> list[Job]:
    """Videos of several first frames, of which the second is flagged."""
    options = {"num_inference_steps": 1}
    pictures = [flagged_picture() if index == 1 else synthetic_picture(64, 64) for index in range(count)]
    return [
        Job(PROMPT, first_frame=picture, out=folder / f"{index}.gif", options=options)
        for index, picture in enumerate(pictures)
    ]


def test_of_several_videos_a_refused_one_is_skipped(
    pipe: LampPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_jobs(pipe, jobs_of(tmp_path, 3))
    assert [next(run)[0].name, next(run)[0].name] == ["0.gif", "2.gif"]
    with pytest.raises(SafetyError, match=r"^1 of 3 videos were refused by the safety checker"):
        next(run)
    assert {path.name for path in tmp_path.iterdir()} == {"0.gif", "0.gif.json", "2.gif", "2.gif.json"}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{tmp_path / '1.gif'} is not made: the first frame is refused")


def test_a_single_refused_video_leaves_nothing(pipe: LampPipeline, tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match=r"^the first frame is refused"):
        list(run_jobs(pipe, jobs_of(tmp_path, 2)[1:]))
    assert not [*tmp_path.iterdir()]


def test_before_save_still_ends_the_run(pipe: LampPipeline, tmp_path: Path) -> None:
    def refuse(video: Video) -> Video:
        raise SafetyError("not this one.")

    with pytest.raises(SafetyError, match=r"^not this one\.$"):
        list(run_jobs(pipe, jobs_of(tmp_path, 3), refuse))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("mode", [None, "report", "off"])
def test_a_sidecar_repeats_the_mode(pipe: LampPipeline, tmp_path: Path, mode: Any) -> None:
    picture = synthetic_picture(64, 64)
    options = {"num_inference_steps": 1, "safety": mode, "safety_crops": "official"}
    list(run_jobs(pipe, [Job(PROMPT, first_frame=picture, out=tmp_path / "a.gif", options=options)]))
    sidecar = json.loads((tmp_path / "a.gif.json").read_text())
    assert (sidecar["safety"], sidecar["safety_crops"]) == (mode, "official")
    assert sidecar["safety_flagged"] is (None if mode == "off" else False)
    job = job_from_sidecar(tmp_path / "a.gif.json")
    assert (job.options["safety"], job.options["safety_crops"]) == (mode, "official")


def test_jobs_that_cannot_be_checked_end_before_any_work(unfiltered: LampPipeline, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 3)
    jobs[2] = Job(PROMPT, first_frame=flagged_picture(), out=tmp_path / "2.gif", options={"safety": "refuse"})
    with pytest.raises(InputError, match="has no safety checker"):
        list(run_jobs(unfiltered, jobs))
    assert not [*tmp_path.iterdir()]
