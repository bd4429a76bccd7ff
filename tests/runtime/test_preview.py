# SPDX-License-Identifier: Apache-2.0
"""Previews of whole videos, on the host and on the double of a device: the same pictures, gated by the safety
checker, without a wait of the device, and nothing shown that is not finite."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import EngineError, InputError, SafetyError
from lamp_trt.export.toy.safety import flagged_picture
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.preview import Previews
from tests.runtime.cuda.test_stages import OnDevice
from tests.runtime.test_stages import Subject

GIVEN: dict[str, Any] = {"first_frame": synthetic_picture(64, 64), "num_inference_steps": 6}
MADE: dict[str, Any] = {"num_inference_steps": 2, "first_frame_num_inference_steps": 3}
Shown = list[tuple[str, int, np.ndarray]]


@pytest.fixture(scope="module", params=["host", "device"])
def subject(request: pytest.FixtureRequest, safe_sdxl_bundle: Path) -> Iterator[Subject]:
    subject = Subject(request.param, safe_sdxl_bundle)
    yield subject
    subject.pipe.close()


def shown_by(pipe: LampPipeline, **options: Any) -> Shown:
    """The previews of a video, as many as there can be."""
    shown: Shown = []
    options = {"preview_interval": 0, **options}
    pipe("x", preview=lambda stage, step, frames: shown.append((stage, step, frames)), **options)
    return shown


def test_a_callback_sees_small_frames_of_the_running_loop(subject: Subject) -> None:
    shown = shown_by(subject.pipe, **GIVEN)
    steps = [step for _, step, _ in shown]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert len(steps) == 6 if subject.kind == "host" else 2 <= len(steps) <= 6
    assert {stage for stage, _, _ in shown} == {"denoise"}
    for _, _, frames in shown:
        assert (frames.dtype, frames.shape) == (np.uint8, (4, 8, 8, 3))
        np.testing.assert_array_equal(frames[0], shown[0][2][0])  # the first frame is given
    assert not np.shares_memory(shown[0][2], shown[1][2])
    assert (shown[0][2] != shown[-1][2]).any()


def test_the_video_is_the_same_with_and_without_previews(subject: Subject) -> None:
    plain = subject.pipe("x", **GIVEN)
    with_previews = subject.pipe("x", preview=lambda *_: None, preview_interval=0, **GIVEN)
    np.testing.assert_array_equal(plain.latents, with_previews.latents)
    np.testing.assert_array_equal(plain.frames, with_previews.frames)
    assert plain.settings == with_previews.settings


def test_the_device_shows_what_the_host_shows(toy_bundle: Path) -> None:
    """Both where the loop is captured and where a callback on latents waits for each step."""
    on_device, host = OnDevice(toy_bundle), lamp_trt.load(toy_bundle, num_threads=1)
    expected = {step: frames for _, step, frames in shown_by(host, **GIVEN)}
    for more in ({}, {"callback_on_step_end": lambda *_: None}):
        shown = shown_by(on_device.pipe, **GIVEN, **more)
        assert not more or len(shown) == 6
        for _, step, frames in shown:
            assert np.abs(frames.astype(int) - expected[step]).max() <= 1
    on_device.device.memory.check()


def test_previews_cost_no_wait_and_no_capture(toy_bundle: Path) -> None:
    on_device = OnDevice(toy_bundle)
    on_device.pipe("x", **GIVEN)
    device = on_device.device
    counts = []
    for options in ({}, {"preview": lambda *_: None, "preview_interval": 0}):
        waits, recordings = device.waits, device.queue.recordings
        on_device.pipe("x", **GIVEN, **options)
        counts.append((device.waits - waits, device.queue.recordings - recordings))
    assert counts[0] == counts[1]
    assert counts[1][1] == 0


def test_the_first_preview_comes_at_once_and_the_next_after_the_interval(subject: Subject) -> None:
    assert [step for _, step, _ in shown_by(subject.pipe, preview_interval=3600, **GIVEN)] == [0]


def test_the_interval_begins_when_the_callback_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lamp_trt.runtime.preview.time.monotonic", lambda: now[0])
    previews = Previews(lambda *_: now.__setitem__(0, now[0] + 5), 2)
    assert previews.due()
    previews.show("denoise", 0, None)
    assert not previews.due()
    now[0] = 7
    assert previews.due()


# --- the safety checker ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("safety", "stages"), [(None, {"denoise"}), ("refuse", {"denoise"})])
def test_a_checker_that_refuses_hides_sdxls_loop(subject: Subject, safety: Any, stages: set[str]) -> None:
    assert {stage for stage, _, _ in shown_by(subject.pipe, safety=safety, **MADE)} == stages


@pytest.mark.parametrize("safety", ["report", "off"])
def test_otherwise_sdxls_loop_is_shown(subject: Subject, safety: Any) -> None:
    shown = shown_by(subject.pipe, safety=safety, **MADE)
    assert shown[0][0] == "make_first_frame"
    assert {stage for stage, _, _ in shown} == {"make_first_frame", "denoise"}
    assert shown[0][2].shape == (1, 12, 20, 3)
    assert len(np.unique(shown[0][2])) > 1


@pytest.mark.parametrize("given", [True, False])
def test_a_refused_first_frame_has_no_preview(
    subject: Subject, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamp_trt.runtime.stages.check_first_frame", refuse)
    shown: Shown = []
    options = {**GIVEN, "first_frame": flagged_picture()} if given else MADE
    with pytest.raises(SafetyError, match="the first frame is refused"):
        subject.pipe("x", preview=lambda *each: shown.append(each), preview_interval=0, **options)
    assert shown == []


def refuse(*_: Any) -> bool:
    raise SafetyError("the first frame is refused.")


# --- what ends a call -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_callback_that_raises_ends_the_call_and_the_pipeline_goes_on(
    subject: Subject, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        subject.pipe("x", preview=fail, **GIVEN)
    assert subject.idle()
    assert shown_by(subject.pipe, **GIVEN)


def test_a_callback_may_not_use_the_pipeline(subject: Subject) -> None:
    def again(*_: Any) -> None:
        subject.pipe("x", **GIVEN)

    with pytest.raises(InputError, match="cannot be used from its own callback"):
        subject.pipe("x", preview=again, **GIVEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preview": "preview.webp"},
            r"preview is 'preview.webp'; expected a function \(stage, step, frames\)",
        ),
        ({"preview": print, "preview_interval": -1}, "preview_interval is -1; expected seconds, 0 or more"),
        ({"preview": print, "preview_interval": float("nan")}, "preview_interval is nan; expected a finite"),
        ({"preview_interval": "soon"}, "preview_interval is 'soon'; expected a finite number"),
    ],
)
def test_other_arguments_are_refused_before_any_work(
    subject: Subject, options: dict[str, Any], message: str
) -> None:
    stages: list[Any] = []
    with pytest.raises(InputError, match=message):
        subject.pipe("x", progress=lambda *each: stages.append(each), **GIVEN, **options)
    assert stages == []


def test_nothing_is_shown_of_a_step_that_is_not_finite(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = subject.engine("lamp_unet")
    whole, runs = engine.run, [0]

    def broken(arrays: Any) -> Any:
        outputs = whole(arrays)
        runs[0] += 1
        if runs[0] > 2:
            outputs["noise_pred"] = np.full_like(outputs["noise_pred"], np.nan)
        return outputs

    shown: Shown = []
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", broken)
        with pytest.raises(EngineError, match="at step 2 of 6"):
            subject.pipe("x", preview=lambda *each: shown.append(each), preview_interval=0, **GIVEN)
    assert {step for _, step, _ in shown} <= {0, 1}
    assert shown_by(subject.pipe, **GIVEN)


# --- bundles of older releases ----------------------------------------------------------------------------


def without_maps(bundle: Path, folder: Path, *vaes: str) -> Path:
    """A copy of a bundle whose manifest lacks the preview maps of `vaes`."""
    copy = Path(shutil.copytree(bundle, folder / "old"))
    manifest = Manifest.from_json((copy / "bundle.json").read_bytes())
    kept = {vae: entry for vae, entry in manifest.previews.items() if vae not in vaes}
    (copy / "bundle.json").write_bytes(replace(manifest, previews=kept).to_json())
    return copy


def test_an_older_bundle_opens_and_only_its_previews_are_refused(toy_bundle: Path, tmp_path: Path) -> None:
    old = without_maps(toy_bundle, tmp_path, "vae")
    assert b"previews" not in (old / "bundle.json").read_bytes()
    with lamp_trt.load(old, num_threads=1) as pipe:
        assert pipe("x", **{**GIVEN, "num_inference_steps": 1}).frames.any()
        with pytest.raises(
            InputError, match=r"no preview: this bundle has no preview map of vae, .*Repeat its build"
        ):
            pipe("x", preview=print, **GIVEN)


def test_sdxls_map_is_needed_only_where_its_loop_is_shown(safe_sdxl_bundle: Path, tmp_path: Path) -> None:
    old = without_maps(safe_sdxl_bundle, tmp_path, "sdxl_vae")
    with lamp_trt.load(old, num_threads=1) as pipe:
        assert shown_by(pipe, **{**GIVEN, "num_inference_steps": 1})
        assert shown_by(pipe, **MADE)
        with pytest.raises(InputError, match="no preview map of sdxl_vae"):
            pipe("x", preview=print, safety="off", **MADE)
