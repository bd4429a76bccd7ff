# SPDX-License-Identifier: Apache-2.0
"""Implementation of `lamp-trt build`: weights, motions, graphs, tokenizers, and finally the manifest.

Building into an existing bundle adds to it: files that do not depend on the given checkpoints are kept. torch
is loaded only if a file must be made.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import (
    Manifest,
    MotionEntry,
    NetworkEntry,
    PreviewEntry,
    SafetyEntry,
)
from lamp_trt.engine.bundle.paths import MANIFEST, graph_path, weights_path
from lamp_trt.engine.bundle.unchanged import write_if_needed
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.families import COMPONENTS, LAMP, NETWORKS, SAFETY_CHECKER
from lamp_trt.engine.precompute import HOISTED, unet_of
from lamp_trt.export.checkpoints.safety import THRESHOLDS
from lamp_trt.export.motions import make_motion, motion_file, refuse_whole_motions
from lamp_trt.export.planned import (
    BuildReport,
    FileMaker,
    PlannedFile,
    graph_file,
    tokenizer_copies,
    weights_file,
)
from lamp_trt.export.recipe import BuildOptions, Recipe, recipe_from_options
from lamp_trt.export.shared_weights import check_shared_stay, is_shared, share_kept

log = logging.getLogger("lamp_trt")


def build_bundle(out: Path, options: BuildOptions, cache: DigestCache | None = None) -> BuildReport:
    """Make or complete the bundle `out`. Raises CheckpointError, InputError or BundleError.

    Finished files survive an error, Ctrl-C or a crash: the next build from the same inputs reuses them.
    """
    start = time.monotonic()
    cache = cache or DigestCache()
    recipe = recipe_from_options(options, cache)
    report = BuildReport(out)
    if not os.path.lexists(out / MANIFEST):
        _check_checkpoints(recipe)
    previews: dict[str, PreviewEntry] = {}
    report.digest = write_if_needed(
        out, lambda writer: _complete(writer, recipe, report, cache, previews), cache
    )
    report.seconds = time.monotonic() - start
    return report


def _complete(
    writer: BundleWriter,
    recipe: Recipe,
    report: BuildReport,
    cache: DigestCache,
    previews: dict[str, PreviewEntry],
) -> str:
    """Make the files of `recipe` that the bundle lacks, commit, and return the bundle's digest.

    previews: receives the preview maps, so that a second call does not fit them again.
    """
    report.files.clear()
    kept = _kept(writer.manifest, recipe, writer.path)
    maker = FileMaker(writer, report)
    weights = {name: weights_file(recipe, name) for name in recipe.components}
    motion_files = {
        name: motion_file(name, source, recipe.precision, weights[LAMP.unet_component].key)
        for name, source in recipe.motions.items()
    }
    _require_space(writer, weights, motion_files)
    stored_in = _make_weights(maker, recipe, weights, kept)
    entries = {name: _entry(recipe, name, stored_in) for name in recipe.networks}
    made_motions = {
        name: make_motion(maker, name, motion_files[name], source) for name, source in recipe.motions.items()
    }
    motions = {**(kept.motions if kept else {}), **made_motions}
    refuse_whole_motions(made_motions, recipe.networks)
    default_motion = next(iter(made_motions), kept.default_motion if kept else None)
    for network, entry in entries.items():
        maker.make(graph_file(recipe, network, entry.component, default_motion, writer.entry))
    entries |= share_kept(maker, recipe, kept)
    for name, folder in recipe.tokenizers.items():
        for planned in tokenizer_copies(name, folder, cache):
            maker.make(planned)
    _make_previews(recipe, kept, previews)
    return writer.commit(_manifest(writer, recipe, kept, entries, motions, default_motion, previews))


def _check_checkpoints(recipe: Recipe) -> None:
    """Raise CheckpointError for tensors that do not fit their config, before a new bundle's folder exists."""
    from lamp_trt.export.networks import check_component

    for source in (*recipe.components.values(), *recipe.motions.values()):
        check_component(source.files)


def _require_space(
    writer: BundleWriter, weights: Mapping[str, PlannedFile], motions: Mapping[str, PlannedFile]
) -> None:
    """Raise BundleError if the weights and motions to be made do not fit on the disk.

    Components with a `same_as` are not counted, since they usually share its file, nor is a full motion's
    copy of shared tensors.
    """
    own = [planned for name, planned in weights.items() if not COMPONENTS[name].same_as]
    missing = [file for file in (*own, *motions.values()) if not writer.have(file.path, file.key)]
    if missing:
        writer.require_free(sum(file.size_bytes() for file in missing))


def _make_weights(
    maker: FileMaker, recipe: Recipe, weights: Mapping[str, PlannedFile], kept: Manifest | None
) -> dict[str, str]:
    """Make the weight files; returns component → the component in whose file its weights are."""
    stored_in = {}
    for name in sorted(weights, key=lambda name: bool(COMPONENTS[name].same_as)):
        if is_shared(maker, recipe, name, kept):
            stored_in[name] = COMPONENTS[name].same_as
        else:
            maker.make(weights[name])
            stored_in[name] = name
    return stored_in


def _make_previews(recipe: Recipe, kept: Manifest | None, previews: dict[str, PreviewEntry]) -> None:
    """Add the preview map of every VAE to `previews`: that of the bundle if its key is the same, or fitted.

    They are made last, and stored in the manifest alone: an interrupted build fits them again.
    """
    for vae, entry in (kept.previews if kept else {}).items():
        previews.setdefault(vae, entry)
    for vae in recipe.scaling_factors:
        key = recipe.preview_key(vae)
        if vae not in previews or previews[vae].key != key:
            from lamp_trt.export.preview_map import fitted_map

            log.info("fitting the preview map of %s", vae)
            entry = fitted_map(recipe.components[vae].files, recipe.scaling_factors[vae], key)
            log.info("previews will show %.0f %% of the colours' variance", 100 * entry.r_squared)
            previews[vae] = entry


def _entry(recipe: Recipe, network: str, stored_in: Mapping[str, str]) -> NetworkEntry:
    component = recipe.specs[network].component
    precision = recipe.precision_of(component)
    return NetworkEntry(graph_path(network), stored_in[component], precision, *recipe.io(network))


def _kept(manifest: Manifest | None, recipe: Recipe, out: Path) -> Manifest | None:
    """The manifest of the existing bundle, checked: its kept parts must fit what this build makes.

    Raises BundleError for a kept network of another size or precision, and for kept networks or motions whose
    shared weights would be replaced.
    """
    if manifest is None:
        return None
    for name in sorted(manifest.networks.keys() - {*recipe.networks, *_dropped(recipe)}):
        entry = manifest.networks[name]
        spec = NETWORKS[unet_of(name)]
        component = spec.component
        if entry.precision != recipe.precision_of(component):
            raise BundleError(
                f"{out} holds {name} in {entry.precision}, this build is in {recipe.precision}: two "
                f"precisions do not fit together. Add --precision {entry.precision}, or choose another --out."
            )
        weights = manifest.files[weights_path(entry.component)]
        if component in recipe.components and weights.key != recipe.weights_key(component):
            raise BundleError(
                f"{out} holds {name}, whose weights this build would replace by those of another checkpoint. "
                f"Build {name} too (--only), or choose another --out."
            )
        sizes = {**manifest.sizes, **recipe.sizes}
        if any(sizes[axis] != manifest.sizes.get(axis) for axis in spec.named_axes):
            raise BundleError(
                f"{out} holds {name} for {_size(manifest.sizes)}, this build is for {_size(sizes)}. Give the "
                f"bundle's size (--height, --width, --frames) or the checkpoint of {name} too, "
                "or choose another --out."
            )
    check_shared_stay(recipe, manifest)
    other_motions = sorted(manifest.motions.keys() - recipe.motions.keys())
    unet = LAMP.unet_component
    base = manifest.files.get(weights_path(unet))
    replaces_base = base and unet in recipe.components and base.key != recipe.weights_key(unet)
    if other_motions and replaces_base:
        raise BundleError(
            f"{out} also holds the motions {', '.join(other_motions)}, over shared weights that this build "
            "would replace. Give their checkpoints too (--motion NAME=DIR, in the order of the first build), "
            "add motions with `lamp-trt motion add`, or choose another --out."
        )
    return manifest


def _dropped(recipe: Recipe) -> set[str]:
    """Networks that compute inputs of the recipe's UNets in other builds and that these UNets do not use."""
    hoisted = {name for unet in HOISTED.keys() & recipe.specs for name in HOISTED[unet]}
    return hoisted - recipe.specs.keys()


def _manifest(
    writer: BundleWriter,
    recipe: Recipe,
    kept: Manifest | None,
    entries: Mapping[str, NetworkEntry],
    motions: Mapping[str, MotionEntry],
    default_motion: str | None,
    previews: Mapping[str, PreviewEntry],
) -> Manifest:
    networks = {**(kept.networks if kept else {}), **entries}
    remade = tuple(f"{name}/" for name in recipe.tokenizers)  # another layout may have fewer files
    old = {path: file for path, file in (kept.files if kept else {}).items() if not path.startswith(remade)}
    files = {**old, **writer.files}
    for name in _dropped(recipe) & networks.keys():
        del networks[name], files[graph_path(name)]
    used = {entry.component for entry in networks.values()}
    for name in COMPONENTS.keys() - used:
        files.pop(weights_path(name), None)
    return Manifest(
        networks=networks,
        sizes={**(kept.sizes if kept else {}), **recipe.sizes},
        scheduler=dict(recipe.scheduler) or (kept.scheduler if kept else {}),
        scaling_factors={**(kept.scaling_factors if kept else {}), **recipe.scaling_factors},
        tokenizers={
            **(kept.tokenizers if kept else {}),
            **{name: {"folder": name} for name in recipe.tokenizers},
        },
        motions=dict(motions),
        default_motion=default_motion,
        files=files,
        first_frame=recipe.first_frame or (kept.first_frame if kept else None),
        safety=_safety(writer, recipe) or (kept.safety if kept else None),
        previews=dict(previews),
    )


def _safety(writer: BundleWriter, recipe: Recipe) -> SafetyEntry | None:
    """Of the safety checker that this build makes or confirms; its thresholds are in its weight file."""
    if recipe.preprocessing is None:
        return None
    stored = read_weight_file(writer.path_of(weights_path(SAFETY_CHECKER))).arrays()
    concepts, special_care = (tuple(map(float, stored[name].tolist())) for name in THRESHOLDS.values())
    return SafetyEntry(
        recipe.preprocessing.image_mean, recipe.preprocessing.image_std, concepts, special_care
    )


def _size(sizes: Mapping[str, int]) -> str:
    text = f"{sizes['width']}x{sizes['height']} and {sizes['num_frames']} frames"
    if "first_frame_width" in sizes:
        text += f" after a first frame of {sizes['first_frame_width']}x{sizes['first_frame_height']}"
    return text
