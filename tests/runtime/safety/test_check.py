# SPDX-License-Identifier: Apache-2.0
"""What becomes of pictures: refused, reported or let through; and closed where the checker gives no
answer."""

import json
import logging
import threading
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, NetworkEntry, SafetyEntry
from lamp_trt.engine.errors import BundleError, Cancelled, EngineError, InputError, SafetyError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.safety.check import SafetyCheck, SafetyPolicy, check_first_frame, check_frames
from tests.fixtures.bundle_cases import key_of

SIZE, CONTROL = 8, Control()
ENTRY = SafetyEntry((0.0,) * 3, (1.0,) * 3, (0.5, 0.9), (0.5,))
PASSES, FLAGGED = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)


class MeanNetwork:
    """The first cosine is a picture's mean, the others are -1."""

    def __init__(self, outcome: float | Exception | None = None) -> None:
        self.batches: list[np.ndarray] = []
        self._outcome = outcome

    def safety_cosines(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(pixel_values)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        concepts = np.full((3, 2), -1, np.float32)
        concepts[:, 0] = pixel_values.mean((1, 2, 3)) if self._outcome is None else self._outcome
        return concepts, np.full((3, 1), -1, np.float32)


def check_of(**changes: Any) -> SafetyCheck:
    return SafetyCheck(ENTRY, SIZE, **changes)


def test_what_is_not_flagged_passes() -> None:
    assert check_first_frame(MeanNetwork(), check_of(), [PASSES], CONTROL) is False
    assert check_frames(MeanNetwork(), check_of(), np.stack([PASSES] * 5), CONTROL) is False


@pytest.mark.parametrize("place", range(5))
def test_one_flagged_frame_of_many_refuses_the_video(place: int) -> None:
    frames = np.stack([PASSES] * 5)
    frames[place] = FLAGGED
    with pytest.raises(
        SafetyError, match=r"^the video is refused: the safety checker flags it\. Try another"
    ):
        check_frames(MeanNetwork(), check_of(), frames, CONTROL)


def test_a_refusal_has_nothing_of_the_picture() -> None:
    with pytest.raises(SafetyError, match=r"^the first frame is refused") as raised:
        check_first_frame(MeanNetwork(), check_of(), [FLAGGED], CONTROL)
    assert raised.value.exit_code == 1
    assert not any(character.isdigit() for character in str(raised.value))
    assert raised.value.args == (str(raised.value),)


def test_a_report_says_so_and_lets_through(caplog: pytest.LogCaptureFixture) -> None:
    assert check_frames(MeanNetwork(), check_of(report=True), FLAGGED[None], CONTROL) is True
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "the safety checker flags the video"
    ]


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (np.nan, "the safety checker's scores are not finite"),
        (np.inf, "the safety checker's scores are not finite"),
        (-np.inf, "the safety checker's scores are not finite"),
        (EngineError("out of memory."), "the safety checker failed, .*: out of memory"),
        (BundleError("its file changed."), "the safety checker failed, .*: its file changed"),
        (MemoryError(), "the safety checker failed"),
    ],
)
def test_no_answer_is_a_refusal(outcome: Any, message: str, report: bool) -> None:
    with pytest.raises(SafetyError, match=f"^the first frame is refused: {message}"):
        check_first_frame(MeanNetwork(outcome), check_of(report=report), [PASSES], CONTROL)


def test_a_check_can_be_cancelled_between_batches() -> None:
    cancel = threading.Event()
    cancel.set()
    network = MeanNetwork()
    with pytest.raises(Cancelled):
        check_frames(network, check_of(), PASSES[None], Control(cancel=cancel))
    assert not network.batches


@pytest.mark.parametrize(
    ("shape", "crops", "batches"),
    [
        ((8, 8), "all", 2),
        ((8, 16), "all", 4),
        ((16, 8), "all", 4),
        ((8, 16), "official", 2),
        ((8, 80), "all", 15),
    ],
)
def test_every_crop_of_every_frame_is_seen(shape: tuple[int, int], crops: Any, batches: int) -> None:
    network = MeanNetwork()
    check_frames(network, check_of(crops=crops), np.zeros((4, *shape, 3), np.uint8), CONTROL)
    assert len(network.batches) == batches
    assert {batch.shape for batch in network.batches} == {(3, 3, SIZE, SIZE)}


def test_scores_are_logged_for_those_who_ask(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lamp_trt")
    check_first_frame(MeanNetwork(), check_of(), [PASSES], CONTROL)
    assert "safety checker, the first frame, highest scores of concepts: -0.500 -1.900" in caplog.messages
    shown = [record.message for record in caplog.records if record.levelno > logging.DEBUG]
    assert shown == ["the safety checker passes the first frame"]


def manifest_of(
    safety: SafetyEntry | None, outputs: tuple[int, ...] = (2, 1), network: bool = True
) -> Manifest:
    names = ("concept_cosines", "special_care_cosines")
    entry = NetworkEntry(
        "safety_checker.onnx",
        "safety_checker",
        "fp32",
        (IOTensor("pixel_values", (3, 3, SIZE, SIZE), "float32"),),
        tuple(IOTensor(name, (3, count), "float32") for name, count in zip(names, outputs, strict=True)),
    )
    files = {"safety_checker.onnx": FileEntry(1, key_of(b"graph"), key_of(b"graph"))}
    return Manifest(
        {"safety_checker": entry} if network else {}, {"height": 64}, {}, {}, files=files, safety=safety
    )


def test_a_bundle_with_a_checker_refuses_unless_told_otherwise() -> None:
    policy = SafetyPolicy(manifest_of(ENTRY))
    assert policy.check(None) == policy.check("refuse") == check_of()
    assert policy.check("report", "official") == check_of(report=True, crops="official")
    assert policy.check("off") is None


def test_a_bundle_without_a_checker_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = SafetyPolicy(manifest_of(None, network=False))
    assert policy.check("off") is None
    assert not caplog.records
    assert [policy.check(None), policy.check(None)] == [None, None]
    assert caplog.messages == ["this bundle has no safety checker: nothing is filtered (docs/safety.md)"]


@pytest.mark.parametrize("mode", ["refuse", "report"])
def test_a_check_that_the_bundle_cannot_make_is_not_skipped(mode: Any) -> None:
    with pytest.raises(InputError, match=f"safety is '{mode}', but this bundle has no safety checker"):
        SafetyPolicy(manifest_of(None, network=False)).check(mode)


def test_the_manifest_keeps_the_thresholds() -> None:
    manifest = manifest_of(ENTRY)
    assert Manifest.from_json(manifest.to_json()) == manifest
    without = manifest_of(None, network=False)
    assert "safety" not in json.loads(without.to_json())
    assert Manifest.from_json(without.to_json()) == without


@pytest.mark.parametrize(
    ("safety", "changes", "message"),
    [
        (None, {}, "safety is None, expected one exactly if there is the network safety_checker"),
        (ENTRY, {"network": False}, "safety is 'there', expected one exactly if"),
        (
            ENTRY,
            {"outputs": (3, 1)},
            r"networks.safety_checker is .*, expected pictures in, and 2 and 1 cosines",
        ),
        (
            ENTRY,
            {"outputs": (2, 2)},
            r"networks.safety_checker is .*, expected pictures in, and 2 and 1 cosines",
        ),
        (SafetyEntry((0.0,) * 3, (1.0, 0.0, 1.0), (0.5, 0.9), (0.5,)), {}, r"safety.image_std is .*positive"),
        (SafetyEntry((0.0,), (1.0,), (0.5, 0.9), (0.5,)), {}, "safety.image_std is .*three channels"),
    ],
)
def test_a_manifest_does_not_lose_half_of_its_filter(
    safety: SafetyEntry | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        manifest_of(safety, **changes)
