# SPDX-License-Identifier: Apache-2.0
"""The differences between revisions that are meant, each with the words of CHANGELOG.md that announce it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.revisions.compare import Difference


@dataclass(frozen=True)
class Allowed:
    """where: a pattern of Difference.where. changelog: words that only the newer CHANGELOG.md has.
    reason: why these words mean these differences."""

    where: str
    changelog: str
    reason: str


PREVIEW_MAPS = (
    "A build fits a linear map from each VAE's latents to colours and keeps it in `bundle.json` (`previews`)"
)

ALLOWED = (
    Allowed(
        "videos/*.timings.json:order",
        "`timings` has `make_first_frame` before `first_frame`, and `total`, the sum of all, last",
        "the keys of Video.timings are in another order",
    ),
    Allowed(
        "videos/transparent*",
        "composited over `--background` (white) where transparent",
        "OpenCV dropped the alpha channel of the first frame",
    ),
    *(
        Allowed(where, PREVIEW_MAPS, reason)
        for where, reason in {
            "bundles/*/bundle.json:previews.*": "the manifest has a new entry",
            "bundles/*/bundle.json:content_sha256": "the digest covers it",
            "videos/*.json:bundle": "a sidecar names the bundle's digest",
        }.items()
    ),
)


def expected(allowed: Iterable[Allowed], changelog_before: str, changelog_after: str) -> list[Allowed]:
    """Those that CHANGELOG.md announces between two revisions."""
    before, after = (" ".join(text.split()) for text in (changelog_before, changelog_after))
    return [each for each in allowed if each.changelog in after and each.changelog not in before]


def sort_out(
    differences: Iterable[Difference], allowed: Sequence[Allowed]
) -> tuple[dict[Allowed, list[Difference]], list[Difference]]:
    """Differences by the first entry that allows them, and those that none allows."""
    found: dict[Allowed, list[Difference]] = {each: [] for each in allowed}
    others = []
    for difference in differences:
        entry = next((each for each in allowed if fnmatchcase(difference.where, each.where)), None)
        (found[entry] if entry else others).append(difference)
    return found, others
