# SPDX-License-Identifier: Apache-2.0
"""Whether a first frame and a video may be given out.

Everything is closed: a checker that fails, or whose scores are not finite, refuses in every mode but `off`. A
refusal is a SafetyError, whose message has nothing of the picture.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest, SafetyEntry
from lamp_trt.engine.errors import Cancelled, InputError, LampError, SafetyError
from lamp_trt.engine.families import SAFETY_BATCH, SAFETY_CHECKER
from lamp_trt.runtime.algorithm.config import Safety, SafetyCrops
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.media.image import Image
from lamp_trt.runtime.ops import Array
from lamp_trt.runtime.safety.decision import Scores, scores_of
from lamp_trt.runtime.safety.pictures import crops_of, pixel_values

log = logging.getLogger("lamp_trt")

FIRST_FRAME, VIDEO = "the first frame", "the video"
"""Stages, in messages."""


class Network(Protocol):
    """The network of the bundle's safety checker, as HostOps and CudaOps run it."""

    def safety_cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        """(SAFETY_BATCH, 3, s, s) → cosines with the concepts and with the special-care concepts."""
        ...


@dataclass(frozen=True)
class SafetyCheck:
    """How pictures of one call are checked. report: flagged pictures are said, not refused. image_size: of
    the network's pictures."""

    entry: SafetyEntry
    image_size: int
    report: bool = False
    crops: SafetyCrops = "all"


class SafetyPolicy:
    """Which check a bundle's calls get; says once that nothing is filtered."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._noticed = manifest, False

    def check(self, mode: Safety | None, crops: SafetyCrops = "all") -> SafetyCheck | None:
        """The check of a call that asked for `mode`, None for none. InputError for a mode that takes a
        checker where the bundle has none."""
        entry = self._manifest.safety
        if mode == "off":
            return None
        if entry is None:
            if mode is not None:
                raise InputError(
                    f"safety is {mode!r}, but this bundle has no safety checker. Take safety='off' (--safety "
                    "off), or build the checker from a checkpoint with the folders safety_checker and "
                    "feature_extractor (lamp-trt build --sd DIR)."
                )
            if not self._noticed:
                self._noticed = True
                log.warning("this bundle has no safety checker: nothing is filtered (docs/safety.md)")
            return None
        image_size = self._manifest.networks[SAFETY_CHECKER].inputs[0].shape[-1]
        return SafetyCheck(entry, image_size, mode == "report", crops)


def check_first_frame(
    network: Network, check: SafetyCheck, pictures: Sequence[Image], control: Control
) -> bool:
    """Whether a first frame is flagged; pictures: it as it is shown and as it is animated, uint8 RGB (h, w,
    3).

    Raises SafetyError unless it passes or is to be reported, and Cancelled.
    """
    return _checked(network, check, FIRST_FRAME, pictures, control)


def check_frames(network: Network, check: SafetyCheck, frames: NDArray[np.uint8], control: Control) -> bool:
    """The same of a video's frames (f, h, w, 3)."""
    return _checked(network, check, VIDEO, list(frames), control)


def _checked(
    network: Network, check: SafetyCheck, stage: str, pictures: Sequence[Image], control: Control
) -> bool:
    try:
        scores = _scores(network, check, pictures, control)
    except Cancelled:
        raise
    except (LampError, MemoryError) as error:
        raise SafetyError(
            f"{stage} is refused: the safety checker failed, so nothing is known of it: {error}"
        ) from error
    for name, values in (("concepts", scores.concepts), ("special care", scores.special_care)):
        if not np.isfinite(values).all():
            raise SafetyError(
                f"{stage} is refused: the safety checker's scores are not finite, so nothing is known of it. "
                "Its weights or its engine are damaged: try `lamp-trt inspect --verify-files`."
            )
        highest = " ".join(f"{value:.3f}" for value in values.max(axis=0))
        log.debug("safety checker, %s, highest scores of %s: %s", stage, name, highest)
    flagged = bool(scores.flagged.any())
    if flagged and not check.report:
        raise SafetyError(
            f"{stage} is refused: the safety checker flags it. Try another first frame, prompt or seed; "
            "docs/safety.md says what is looked for."
        )
    if flagged:
        log.warning("the safety checker flags %s", stage)
    else:
        log.info("the safety checker passes %s", stage)
    return flagged


def _scores(network: Network, check: SafetyCheck, pictures: Sequence[Image], control: Control) -> Scores:
    """Of every crop of every picture. The last batch is filled up by its own first crop."""
    concepts: list[Array] = []
    special_care: list[Array] = []
    for crops in _batches(check, pictures):
        control.check()
        filled = [*crops, *[crops[0]] * (SAFETY_BATCH - len(crops))]
        cosines = network.safety_cosines(pixel_values(filled, check.entry))
        for found, collected in zip(cosines, (concepts, special_care), strict=True):
            collected.append(found[: len(crops)])
    return scores_of(np.concatenate(concepts), np.concatenate(special_care), check.entry)


def _batches(check: SafetyCheck, pictures: Sequence[Image]) -> Iterator[list[Image]]:
    waiting: list[Image] = []
    for picture in pictures:
        waiting += crops_of(picture, check.image_size, check.crops)
        while len(waiting) >= SAFETY_BATCH:
            yield waiting[:SAFETY_BATCH]
            del waiting[:SAFETY_BATCH]
    if waiting:
        yield waiting
