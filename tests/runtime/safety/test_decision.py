# SPDX-License-Identifier: Apache-2.0
"""Cosines to verdicts: diffusers' own loop is the reference."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lamp_trt.engine.bundle.manifest import SafetyEntry
from lamp_trt.runtime.safety.decision import scores_of

CONCEPTS, SPECIAL_CARE = 17, 3
Cosines = np.ndarray


def entry_of(concepts: np.ndarray, special_care: np.ndarray) -> SafetyEntry:
    return SafetyEntry((0.5,) * 3, (0.5,) * 3, tuple(concepts.tolist()), tuple(special_care.tolist()))


@pytest.fixture(scope="module")
def diffusers_verdicts() -> Callable[[Cosines, Cosines, SafetyEntry], list[bool]]:
    """The verdicts of StableDiffusionSafetyChecker.forward, given the cosines that its networks would
    make."""
    from diffusers.pipelines.stable_diffusion import safety_checker as published

    def verdicts(concepts: Cosines, special_care: Cosines, entry: SafetyEntry) -> list[bool]:
        checker = SimpleNamespace(
            vision_model=lambda pictures: (None, pictures),
            visual_projection=lambda pooled: pooled,
            concept_embeds="concepts",
            special_care_embeds="special care",
            concept_embeds_weights=torch.tensor(entry.concept_thresholds),
            special_care_embeds_weights=torch.tensor(entry.special_care_thresholds),
        )
        cosines = {"concepts": torch.from_numpy(concepts), "special care": torch.from_numpy(special_care)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(published, "cosine_distance", lambda embeds, name: cosines[name])
            patch.setattr(published.logger, "warning", lambda *_: None)
            images = np.zeros((len(concepts), 2, 2, 3))
            forward = published.StableDiffusionSafetyChecker.forward
            return list(forward(checker, torch.zeros(len(concepts), 1), images)[1])

    return verdicts


@pytest.mark.parametrize("count", [120, pytest.param(4000, marks=pytest.mark.slow)])
def test_verdicts_are_those_of_diffusers(
    count: int, diffusers_verdicts: Callable[[Cosines, Cosines, SafetyEntry], list[bool]]
) -> None:
    """Cosines a few thousandths around their thresholds, so that rounding and the adjustment decide."""
    rng = np.random.default_rng(3)
    thresholds = rng.uniform(0.15, 0.3, CONCEPTS + SPECIAL_CARE).astype(np.float32)
    concept_thresholds, special_thresholds = thresholds[:CONCEPTS], thresholds[CONCEPTS:]
    entry = entry_of(concept_thresholds, special_thresholds)
    near = rng.normal(-0.012, 0.006, (count, CONCEPTS)).astype(np.float32)
    near[:, 5:] -= np.float32(0.05)
    concepts = concept_thresholds + near
    special_care = special_thresholds + rng.normal(-0.006, 0.008, (count, SPECIAL_CARE)).astype(np.float32)
    ours = scores_of(concepts, special_care, entry)
    expected = diffusers_verdicts(concepts, special_care, entry)
    assert ours.flagged.tolist() == expected
    assert 0.2 <= np.mean(expected) <= 0.8
    without_special_care = scores_of(concepts, special_care - np.float32(1), entry).flagged
    assert (without_special_care != ours.flagged).mean() > 0.1  # the adjustment decided


@pytest.mark.parametrize(
    ("excess", "flagged"),
    [(0.0004, False), (0.0006, True), (0.0, False), (-0.1, False), (0.5, True)],
)
def test_a_score_is_rounded_to_three_decimals(excess: float, flagged: bool) -> None:
    entry = entry_of(np.array([0.25, 0.9]), np.array([0.5]))
    scores = scores_of(np.array([[0.25 + excess, 0.0]]), np.array([[0.0]]), entry)
    assert scores.flagged.tolist() == [flagged]
    assert scores.concepts[0, 0] == pytest.approx(round(excess, 3), abs=1e-6)


@pytest.mark.parametrize(
    ("special_care", "flagged"),
    [
        ((-0.1, -0.1), False),
        ((0.1, -0.1), True),  # found: what is 0.008 below its threshold is found too
        ((-0.1, 0.1), True),
        ((0.0004, -0.1), False),  # rounds to 0
        ((0.1, -0.02), True),
    ],
)
def test_a_special_care_concept_lowers_the_other_thresholds(
    special_care: tuple[float, float], flagged: bool
) -> None:
    entry = entry_of(np.array([0.25]), np.array([0.5, 0.5]))
    scores = scores_of(np.array([[0.25 - 0.008]]), 0.5 + np.array([special_care]), entry)
    assert scores.flagged.tolist() == [flagged]


def test_the_adjustment_is_carried_from_one_special_care_concept_to_the_next() -> None:
    entry = entry_of(np.array([0.9]), np.array([0.5, 0.5, 0.5]))
    second = scores_of(np.array([[0.0]]), np.array([[0.495, 0.6, 0.495]]), entry).special_care
    np.testing.assert_allclose(second, [[-0.005, 0.1, 0.005]], atol=1e-6)


def test_special_care_alone_flags_nothing() -> None:
    entry = entry_of(np.array([0.9]), np.array([0.1]))
    assert not scores_of(np.array([[0.0]]), np.array([[0.9]]), entry).flagged.any()
