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


CHECKER = "The safety checker of Stable Diffusion v1.4 as a ninth network"
CHECKER_OPTIONS = "`--safety refuse | report | off` and `--safety-crops` of `generate` and `image`"
TOY_CHECKER = "`lamp-trt toy` writes a checker and `flagged.png`"
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
    Allowed("toy/flagged.png", TOY_CHECKER, "an image that the toy checker flags"),
    Allowed("toy/sd/safety_checker/*", TOY_CHECKER, "its weights and config"),
    Allowed("toy/sd/feature_extractor/*", TOY_CHECKER, "its preprocessing"),
    Allowed("toy/sd/model_index.json:safety_checker", TOY_CHECKER, "the class of the checker"),
    Allowed("toy/sd/model_index.json:feature_extractor", TOY_CHECKER, "the class of its preprocessing"),
    Allowed("bundles/*/safety_checker.onnx", CHECKER, "its graph"),
    Allowed("bundles/*/weights/safety_checker.safetensors", CHECKER, "its weights"),
    Allowed("bundles/*/bundle.json:*safety_checker.*", CHECKER, "its network and files in the manifest"),
    Allowed("bundles/*/bundle.json:sizes.safety_*", CHECKER, "its sizes"),
    Allowed("bundles/*/bundle.json:safety.*", CHECKER, "its thresholds and preprocessing"),
    Allowed("bundles/*/bundle.json:content_sha256", CHECKER, "the digest of a bundle with these files"),
    Allowed("videos/*.json:bundle", CHECKER, "the same digest, in sidecars"),
    Allowed("videos/*.json:safety*", CHECKER_OPTIONS, "the new options and the verdict in sidecars"),
    Allowed(
        "videos/*.json:cpu_precision",
        "`--cpu-precision fp32|bf16` and `lamp_trt.load(cpu_precision=…)`",
        "the new option in sidecars",
    ),
    Allowed("bundles/*/bundle.json:previews.*", PREVIEW_MAPS, "the manifest has a new entry"),
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
