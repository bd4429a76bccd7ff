# SPDX-License-Identifier: Apache-2.0
"""The bundles in a folder, and whether they filter what they make."""

from pathlib import Path

from lamp_trt.doctor.findings import Finding
from lamp_trt.engine.bundle.manifest import read_manifest
from lamp_trt.engine.bundle.paths import MANIFEST
from lamp_trt.engine.errors import BundleError

_SECTION = "bundles"
_MAX_BUNDLES = 20


def bundle_findings(folder: Path) -> list[Finding]:
    """A finding for `folder` or each folder in it that is a bundle."""
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in (folder, *inside) if (path / MANIFEST).is_file()]
    except OSError:  # a folder that may not be read is the machine's finding
        return []
    return [_finding(path) for path in found[:_MAX_BUNDLES]]


def _finding(path: Path) -> Finding:
    name = path.resolve().name
    try:
        safety = read_manifest(path)[0].safety
    except (BundleError, OSError) as error:
        return Finding(_SECTION, name, "problem", str(error), "lamp-trt inspect says more")
    data = {"filters": safety is not None}
    if safety is None:
        remedy = (
            "build it from a checkpoint with safety_checker and feature_extractor to filter, docs/safety.md"
        )
        return Finding(_SECTION, name, "note", "no safety checker: nothing is filtered", remedy, data=data)
    count = len(safety.concept_thresholds)
    return Finding(_SECTION, name, "ok", f"filtered by a safety checker of {count} concepts", data=data)
