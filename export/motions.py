# SPDX-License-Identifier: Apache-2.0
"""The motions of a bundle: one file of 360 tensors each, over one set of shared weights.

LAMP trains 360 of the UNet's 1062 tensors; the others are Stable Diffusion's. A checkpoint in which others
differ too is stored whole, as a "full" motion that shares nothing.
"""

import dataclasses
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from lamp_trt.engine.bundle.atomic_files import NewFile
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import Manifest, MotionEntry
from lamp_trt.engine.bundle.paths import (
    MANIFEST,
    PENDING,
    graph_path,
    motion_path,
    validate_motion_name,
    weights_path,
)
from lamp_trt.engine.bundle.unchanged import write_if_needed
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import LAMP
from lamp_trt.engine.files.links import meant_folder
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.precompute import HOISTED
from lamp_trt.export.planned import BuildReport, FileMaker, PathOf, PlannedFile, log, relocated_graph
from lamp_trt.export.recipe import Source, motion_graph_key, motion_key, motion_source

_BASE = weights_path(LAMP.unet_component)
_KIND, _ROUNDED = "lamp_trt_kind", "lamp_trt_rounded"
"""Metadata entries of a motion's file. The second is the lower precision if only rounding makes it full."""


def motion_file(name: str, source: Source, precision: Precision, base_key: str) -> PlannedFile:
    """The file motions/<name>.safetensors.

    base_key: key of the shared UNet weights, which must be made before it.
    """

    def write(file: NewFile, path_of: PathOf) -> None:
        from lamp_trt.export.convert import rounding_between, shares_base, write_component
        from lamp_trt.export.networks import check_component

        check_component(source.files)
        shared = read_weight_file(path_of(_BASE))
        full = not shares_base(source.files, shared, precision)
        rounded = rounding_between(source.files, shared, precision) if full else None
        write_component(
            file,
            source.files,
            precision,
            wanted=(lambda tensor: True) if full else is_motion_tensor,
            metadata={_KIND: "full" if full else "motion", **({_ROUNDED: rounded} if rounded else {})},
        )

    def size_bytes() -> int:
        """Size in bytes without a full motion's copy of shared tensors."""
        from lamp_trt.export.convert import stored_bytes

        return stored_bytes(source.files, precision, is_motion_tensor)

    key = motion_key(source, precision, base_key)
    return PlannedFile(motion_path(validate_motion_name(name)), key, write, size_bytes)


def make_motion(maker: FileMaker, name: str, planned: PlannedFile, source: Source) -> MotionEntry:
    """Make or confirm the file of motion `name`. Logs a warning for a full motion."""
    maker.make(planned)
    metadata = read_weight_file(maker.writer.path_of(planned.path)).metadata
    full = metadata[_KIND] == "full"
    if full and name not in maker.report.full_motions:
        log.warning(
            "motion %s differs from the shared weights outside the motion tensors too%s: it is kept whole, "
            "and switching to it loads the whole UNet",
            name,
            _because_of_rounding(metadata),
        )
        maker.report.full_motions.append(name)
    return MotionEntry(planned.path, "full" if full else "motion", source.digest)


def _because_of_rounding(metadata: Mapping[str, str]) -> str:
    """The explanation of a full motion whose shared tensors differ from the base only by rounding."""
    if _ROUNDED not in metadata:
        return ""
    precision = metadata[_ROUNDED]
    return (
        f", but only by rounding: one of the two checkpoints was saved in {precision}, the other in a higher "
        f"precision (save both in the same, or build with --precision {precision}, and they share)"
    )


def refuse_whole_motions(motions: Mapping[str, MotionEntry], networks: Collection[str]) -> None:
    """Raise BundleError for a full motion in a bundle with hoisted networks, which use the base's weights."""
    hoisted = [name for name in HOISTED[LAMP.unet] if name in networks]
    whole = [name for name, motion in motions.items() if motion.kind == "full"]
    if hoisted and whole:
        raise BundleError(
            f"motion {whole[0]!r} differs from the shared weights outside the motion tensors too, but "
            f"{' and '.join(hoisted)} compute with the shared ones for every motion. "
            "Build it into a bundle without --hoist text and time."
        )


def add_motion(bundle: Path, name: str, folder: Path, cache: DigestCache | None = None) -> BuildReport:
    """Add the LAMP checkpoint in `folder` to a bundle as motion `name`. Nothing else changes.

    Raises InputError if another checkpoint has this name, CheckpointError for another architecture.
    """
    start = time.monotonic()
    cache = cache or DigestCache()
    _require_bundle(bundle)
    source = motion_source(folder, cache, {})
    report = BuildReport(bundle)

    def add(writer: BundleWriter) -> str:
        report.files.clear()
        manifest = _manifest_with_unet(writer)
        known = manifest.motions.get(name)
        if known and known.origin != source.digest:
            raise InputError(
                f"{bundle} holds another checkpoint as motion {name!r}. "
                f"Choose another name, or first run: lamp-trt motion remove {bundle} {name}"
            )
        precision = manifest.networks[LAMP.unet].precision
        planned = motion_file(name, source, precision, writer.entry(_BASE).key)
        if known is None:
            writer.require_free(planned.size_bytes())
        motion = make_motion(FileMaker(writer, report), name, planned, source)
        refuse_whole_motions({name: motion}, manifest.networks)
        return writer.commit(
            dataclasses.replace(
                manifest,
                motions={**manifest.motions, name: motion},
                files={**manifest.files, **writer.files},
            )
        )

    report.digest = write_if_needed(bundle, add, cache)
    report.seconds = time.monotonic() - start
    return report


def remove_motion(bundle: Path, name: str, default: str | None = None) -> str:
    """Remove motion `name` from a bundle and return the bundle's new digest.

    default: the new default motion, which the UNet's graph references; required if `name` is the default.
    Raises InputError for an unknown name, or if `name` is the default and no other is given.
    """
    _require_bundle(bundle)

    def remove(writer: BundleWriter) -> str:
        manifest = _manifest_with_unet(writer)
        for motion in (name, default):
            if motion is not None and motion not in manifest.motions:
                known = ", ".join(sorted(manifest.motions))
                raise InputError(f"{bundle} holds no motion {motion!r}; known: {known}.")
        shown = manifest.default_motion if default is None else default
        if shown == name:
            others = ", ".join(sorted(manifest.motions.keys() - {name})) or "none: add one first"
            graph = graph_path(LAMP.unet)
            raise InputError(
                f"{name!r} is the default motion of {bundle}, the one that {graph} points at. "
                f"Name another with --default ({others})."
            )
        assert shown is not None
        removed = manifest.motions[name].file
        files = {path: entry for path, entry in manifest.files.items() if path != removed}
        if shown != manifest.default_motion:
            point_graph_at_motion(writer, shown)
            files |= writer.files
        motions = {key: motion for key, motion in manifest.motions.items() if key != name}
        return writer.commit(
            dataclasses.replace(manifest, motions=motions, default_motion=shown, files=files)
        )

    return write_if_needed(bundle, remove, DigestCache())


def point_graph_at_motion(writer: BundleWriter, motion: str) -> None:
    """Rewrite the UNet's graph so that it references the motion tensors of `motion`.

    The shared weights come first because the graph may reference a full motion.
    """
    own = motion_path(motion)
    planned = relocated_graph(
        LAMP.unet, [_BASE, own], lambda key: motion_graph_key(key, writer.entry(own).key), writer.path_of
    )
    with writer.create(planned.path, planned.key) as file:
        planned.write(file, writer.path_of)


def _require_bundle(path: Path) -> None:
    """Raise BundleError unless `path` holds a bundle, finished or begun; a writer would start a new one."""
    if not any(os.path.lexists(path / name) for name in (MANIFEST, PENDING)):
        remedy = meant_folder(path, (MANIFEST,)) or "Build one first: lamp-trt build"
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}. {remedy}")


def _manifest_with_unet(writer: BundleWriter) -> Manifest:
    if writer.manifest is None or LAMP.unet not in writer.manifest.networks:
        raise BundleError(
            f"{writer.path} holds no LAMP UNet that a motion could belong to. "
            f"Build it first: lamp-trt build --motion NAME=DIR --out {writer.path}"
        )
    return writer.manifest
