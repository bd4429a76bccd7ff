# SPDX-License-Identifier: Apache-2.0
"""From cosines to verdicts, as diffusers' StableDiffusionSafetyChecker.forward decides.

Each picture has a cosine with every concept and with every special-care concept. Its score for one is

    score = round(cosine - threshold + adjustment, 3 decimals)

and the concept is found if the score is above 0. The adjustment is 0 at first. The special-care concepts come
first, in order, and once one is found the adjustment is 0.01 for all that follow: the other special-care
concepts and every concept. A picture is flagged if any concept is found; special-care concepts alone flag
nothing. All arithmetic is in float32, rounding is to the nearest even. diffusers' `forward_onnx` neither
rounds nor carries the adjustment, and decides otherwise in places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import SafetyEntry

ADJUSTMENT = np.float32(0.01)
DECIMALS = 3


@dataclass(frozen=True, eq=False)
class Scores:
    """Of n pictures, float32: concepts (n, concepts) and special_care (n, special-care concepts)."""

    concepts: NDArray[np.float32]
    special_care: NDArray[np.float32]

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Which pictures are flagged, (n,)."""
        return np.asarray((self.concepts > 0).any(axis=1))


def scores_of(
    concept_cosines: NDArray[Any], special_care_cosines: NDArray[Any], entry: SafetyEntry
) -> Scores:
    """Scores of cosines (n, concepts) and (n, special-care concepts)."""
    concepts, special_care = (
        np.asarray(cosines, np.float32) - np.array(thresholds, np.float32)
        for cosines, thresholds in (
            (concept_cosines, entry.concept_thresholds),
            (special_care_cosines, entry.special_care_thresholds),
        )
    )
    adjustment = np.zeros(len(concepts), np.float32)
    for column in special_care.T:
        column[:] = np.round(column + adjustment, DECIMALS)
        adjustment[column > 0] = ADJUSTMENT
    return Scores(np.round(concepts + adjustment[:, None], DECIMALS), special_care)
