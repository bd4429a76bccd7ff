# SPDX-License-Identifier: Apache-2.0
"""The check in every stage, on the host and on the double of a device: given first frames, made ones,
videos."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError, SafetyError
from lamp_trt.export.toy.safety import flagged_picture
from lamp_trt.runtime.load import load_first_frame_maker
from lamp_trt.runtime.requests import FirstFrameRequest
from tests.runtime.test_stages import Subject

STEPS: dict[str, Any] = {"num_inference_steps": 2, "first_frame_num_inference_steps": 2}
GIVEN = {"first_frame": synthetic_picture(64, 64), "num_inference_steps": 2}


@pytest.fixture(scope="module", params=["host", "device"])
def subject(request: pytest.FixtureRequest, safe_sdxl_bundle: Path) -> Iterator[Subject]:
    subject = Subject(request.param, safe_sdxl_bundle)
    yield subject
    subject.pipe.close()


@pytest.fixture
def everything_is_flagged(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    policy = subject.pipe._safety
    safety = policy._manifest.safety
    assert safety is not None
    lower = tuple(-2.0 for _ in safety.concept_thresholds)
    changed = replace(policy._manifest, safety=replace(safety, concept_thresholds=lower))
    monkeypatch.setattr(policy, "_manifest", changed)


def test_what_passes_is_the_same_with_and_without_a_check(subject: Subject) -> None:
    checked, unchecked = (subject.pipe("x", safety=mode, **GIVEN) for mode in (None, "off"))
    np.testing.assert_array_equal(checked.frames, unchecked.frames)
    assert (checked.settings["safety_flagged"], unchecked.settings["safety_flagged"]) == (False, None)
    made, unchecked = (subject.pipe("x", safety=mode, **STEPS) for mode in (None, "off"))
    np.testing.assert_array_equal(made.frames, unchecked.frames)
    np.testing.assert_array_equal(made.first_frame, unchecked.first_frame)


@pytest.mark.parametrize("given", [True, False])
def test_a_flagged_first_frame_costs_no_loop(
    subject: Subject, everything_is_flagged: None, given: bool
) -> None:
    seen: list[str] = []
    options = GIVEN if given else STEPS
    with pytest.raises(SafetyError, match=r"^the first frame is refused: the safety checker flags it"):
        subject.pipe("x", progress=lambda stage, done, total: seen.append(stage), **options)
    assert "denoise" not in seen
    assert subject.idle()
    assert subject.pipe("x", safety="off", **options).settings["safety_flagged"] is None


def test_a_made_first_frame_alone_is_checked(subject: Subject, everything_is_flagged: None) -> None:
    with pytest.raises(SafetyError, match=r"^the first frame is refused"):
        subject.pipe.make_first_frame("x", num_inference_steps=1)
    reported = subject.pipe.make_first_frame("x", num_inference_steps=1, safety="report")
    assert (reported.settings["safety"], reported.settings["safety_flagged"]) == ("report", True)
    assert (
        subject.pipe.make_first_frame("x", num_inference_steps=1, safety="off").settings["safety_flagged"]
        is None
    )


def test_both_devices_flag_alike_by_engines_of_their_own(subject: Subject) -> None:
    assert subject.pipe.flags(flagged_picture()[None])
    assert not subject.pipe.flags(synthetic_picture(64, 96)[None])
    with pytest.raises(SafetyError, match=r"^the first frame is refused"):
        subject.pipe("x", first_frame=flagged_picture(), num_inference_steps=1)
    if subject.on_device:
        assert subject.on_device.engines["safety_checker"].runs >= 3


def test_an_engine_that_fails_refuses_and_the_next_call_is_served(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.pipe.flags(flagged_picture()[None])  # loads the checker
    with monkeypatch.context() as broken:
        owner: Any = subject.on_device.ops if subject.on_device else subject.pipe._ops

        def fail(pixel_values: np.ndarray) -> Any:
            raise EngineError("the engine is gone.")

        broken.setattr(owner, "safety_cosines", fail)
        with pytest.raises(
            SafetyError, match=r"^the first frame is refused: the safety checker failed, .*gone"
        ):
            subject.pipe("x", **GIVEN)
    assert subject.pipe("x", **GIVEN).settings["safety_flagged"] is False


def test_the_maker_of_first_frames_checks_by_itself(safe_sdxl_bundle: Path, toy_bundle: Path) -> None:
    with load_first_frame_maker(Bundle.open(safe_sdxl_bundle)) as maker:
        made = maker(FirstFrameRequest("x", num_inference_steps=1))
        assert made.settings["safety_flagged"] is False
        assert (made.settings["safety"], made.settings["safety_crops"]) == (None, "all")


def test_the_maker_refuses_a_check_that_it_cannot_make(sdxl_bundle: Path) -> None:
    with (
        load_first_frame_maker(Bundle.open(sdxl_bundle)) as maker,
        pytest.raises(InputError, match="has no safety checker"),
    ):
        maker(FirstFrameRequest("x", num_inference_steps=1, safety="refuse"))
