# SPDX-License-Identifier: Apache-2.0
"""What `lamp-trt build` does: weights, motions, graphs, tokenizer, and last the manifest.

Building into an existing bundle adds to it: what the given checkpoints do not concern is kept. torch is
loaded only when something has to be made.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lamp_trt.engine.bundle.atomic_files import NewFile
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import Manifest, MotionEntry, NetworkEntry
from lamp_trt.engine.bundle.paths import MANIFEST, graph_path, motion_path, weights_path
from lamp_trt.engine.bundle.unchanged import write_if_needed
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.files.tokenizer import tokenizer_files
from lamp_trt.engine.networks import NETWORKS, is_motion_tensor
from lamp_trt.engine.precompute import HOISTED, unet_of
from lamp_trt.export.bundle_files import (
    GRAPH_KEY,
    BuildReport,
    FileMaker,
)
from lamp_trt.export.lent_weights import BORROWER, LENDER, borrow_later, borrows, check_lender_stays
from lamp_trt.export.motions import UNET, entry_of, make_motion, refuse_whole_motions
from lamp_trt.export.recipe import (
    BuildOptions,
    Recipe,
    Source,
    lent_graph_key,
    motion_graph_key,
    motion_key,
    recipe_from_options,
)


def build_bundle(out: Path, options: BuildOptions, cache: DigestCache | None = None) -> BuildReport:
    """Make or complete the bundle `out`. Raises CheckpointError, InputError or BundleError.

    Finished files survive an error, Ctrl-C or a crash: the next build from the same inputs takes them over.
    """
    start = time.monotonic()
    cache = cache or DigestCache()
    recipe = recipe_from_options(options, cache)
    report = BuildReport(out)
    if not os.path.lexists(out / MANIFEST):
        _check_checkpoints(recipe)
    report.digest = write_if_needed(out, lambda writer: _complete(writer, recipe, report, cache), cache)
    report.seconds = time.monotonic() - start
    return report


def _complete(writer: BundleWriter, recipe: Recipe, report: BuildReport, cache: DigestCache) -> str:
    """Make what the bundle lacks of `recipe`, commit, and return the bundle's digest."""
    report.files.clear()
    kept = _kept(writer.manifest, recipe, writer.path)
    maker = FileMaker(writer, report)
    _require_space(writer, recipe)
    for component in recipe.components:
        if component != BORROWER:
            _make_weights(maker, recipe, component)
    borrowed = BORROWER in recipe.components and borrows(maker, recipe, kept)
    if BORROWER in recipe.components and not borrowed:
        _make_weights(maker, recipe, BORROWER)
    entries = {name: _entry(recipe, name, borrowed) for name in recipe.networks}
    made_motions = {
        name: make_motion(maker, name, source, recipe.precision) for name, source in recipe.motions.items()
    }
    motions = {**(kept.motions if kept else {}), **made_motions}
    refuse_whole_motions(made_motions, recipe.networks)
    default_motion = next(iter(made_motions), kept.default_motion if kept else None)
    for network, entry in entries.items():
        _make_graph(maker, recipe, network, entry.component, default_motion)
    entries |= borrow_later(maker, recipe, kept)
    for name, folder in recipe.tokenizers.items():
        _copy_tokenizer(maker, name, folder, cache)
    return writer.commit(_manifest(maker, recipe, kept, entries, motions, default_motion))


def _check_checkpoints(recipe: Recipe) -> None:
    """Raise CheckpointError for tensors that do not fit, before a new bundle's folder is made."""
    from lamp_trt.export.networks import check_component

    for source in (*recipe.components.values(), *recipe.motions.values()):
        check_component(source.files)


def _is_stored(component: str, tensor: str) -> bool:
    """Whether a tensor goes into its component's weight file: of the LAMP UNet, what all motions share; of
    SDXL's VAE, the decoder."""
    if component == "sdxl_vae":
        return tensor.startswith(("decoder.", "post_quant_conv."))
    return component != "unet" or not is_motion_tensor(tensor)


def _require_space(writer: BundleWriter, recipe: Recipe) -> None:
    """Raise BundleError if the weights and motions that are to be made do not fit on the disk.

    SDXL's CLIP-L is not counted, for it is usually borrowed; nor is a motion's copy of shared tensors.
    """
    missing: list[tuple[Source, Precision, Callable[[str], bool]]] = [
        (source, recipe.precision_of(name), partial(_is_stored, name))
        for name, source in recipe.components.items()
        if name != BORROWER and not writer.have(weights_path(name), recipe.weights_key(name))
    ]
    for name, source in recipe.motions.items():
        key = motion_key(source, recipe.precision, recipe.weights_key("unet"))
        if not writer.have(motion_path(name), key):
            missing.append((source, recipe.precision, is_motion_tensor))
    if missing:
        from lamp_trt.export.convert import stored_bytes

        writer.require_free(sum(stored_bytes(s.files, precision, wanted) for s, precision, wanted in missing))


def _make_weights(maker: FileMaker, recipe: Recipe, component: str) -> None:
    """weights/<component>.safetensors."""
    source = recipe.components[component]

    def write(file: NewFile) -> None:
        from lamp_trt.export.convert import write_component
        from lamp_trt.export.networks import check_component

        check_component(source.files)
        write_component(
            file,
            source.files,
            recipe.precision_of(component),
            wanted=lambda tensor: _is_stored(component, tensor),
        )

    maker.make(weights_path(component), recipe.weights_key(component), write)


def _entry(recipe: Recipe, network: str, borrowed: bool) -> NetworkEntry:
    component = recipe.specs[network].component
    stored_in = LENDER if borrowed and component == BORROWER else component
    return NetworkEntry(graph_path(network), stored_in, recipe.precision_of(component), *recipe.io(network))


def _make_graph(
    maker: FileMaker, recipe: Recipe, network: str, stored_in: str, default_motion: str | None
) -> None:
    """<network>.onnx, pointing at the weights of component `stored_in`, and of the default motion."""
    component = recipe.specs[network].component
    graph_key = key = recipe.graph_key(network)
    weight_files = [weights_path(stored_in)]
    if stored_in != component:
        key = lent_graph_key(graph_key, entry_of(maker.writer, weight_files[0]).sha256)
    if network == UNET:
        assert default_motion is not None
        weight_files.append(motion_path(default_motion))
        key = motion_graph_key(graph_key, entry_of(maker.writer, weight_files[-1]).key)

    def write(file: NewFile) -> None:
        from lamp_trt.export.networks import exported_network
        from lamp_trt.export.onnx import Location, export_graph

        locations = {
            name: Location(path, ref)
            for path in weight_files
            for name, ref in read_weight_file(maker.writer.path_of(path)).tensors.items()
        }
        module = exported_network(recipe, network)
        file.write(export_graph(module, *recipe.io(network), locations, metadata={GRAPH_KEY: graph_key}))

    maker.make(graph_path(network), key, write)


def _copy_tokenizer(maker: FileMaker, name: str, folder: Path, cache: DigestCache) -> None:
    for file_name, source in tokenizer_files(folder).items():

        def write(file: NewFile, source: Path = source) -> None:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file)

        maker.make(f"{name}/{file_name}", cache.digest(source), write)


def _kept(manifest: Manifest | None, recipe: Recipe, out: Path) -> Manifest | None:
    """The bundle in place, if what this build leaves of it goes together with what it makes.

    Raises BundleError for a network of another size or precision, and for networks or motions whose shared
    weights would be replaced under them.
    """
    if manifest is None:
        return None
    for name in manifest.networks.keys() - {*recipe.networks, *_dropped(recipe)}:
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
    check_lender_stays(recipe, manifest)
    other_motions = sorted(manifest.motions.keys() - recipe.motions.keys())
    base = manifest.files.get(weights_path("unet"))
    replaces_base = base and "unet" in recipe.components and base.key != recipe.weights_key("unet")
    if other_motions and replaces_base:
        raise BundleError(
            f"{out} also holds the motions {', '.join(other_motions)}, over shared weights that this build "
            "would replace. Give their checkpoints too (--motion NAME=DIR, in the order of the first build), "
            "add motions with `lamp-trt motion add`, or choose another --out."
        )
    return manifest


def _dropped(recipe: Recipe) -> set[str]:
    """Networks beside the recipe's UNets that these, as they are now, do without."""
    beside = {name for unet in HOISTED.keys() & recipe.specs for name in HOISTED[unet]}
    return beside - recipe.specs.keys()


def _manifest(
    maker: FileMaker,
    recipe: Recipe,
    kept: Manifest | None,
    entries: Mapping[str, NetworkEntry],
    motions: Mapping[str, MotionEntry],
    default_motion: str | None,
) -> Manifest:
    networks = {**(kept.networks if kept else {}), **entries}
    remade = tuple(f"{name}/" for name in recipe.tokenizers)  # in another layout files may have gone
    old = {path: file for path, file in (kept.files if kept else {}).items() if not path.startswith(remade)}
    files = {**old, **maker.writer.files}
    for name in _dropped(recipe) & networks.keys():
        del networks[name], files[graph_path(name)]
    if all(entry.component != BORROWER for entry in networks.values()):
        files.pop(weights_path(BORROWER), None)
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
    )


def _size(sizes: Mapping[str, int]) -> str:
    text = f"{sizes['width']}x{sizes['height']} and {sizes['num_frames']} frames"
    if "first_frame_width" in sizes:
        text += f" after a first frame of {sizes['first_frame_width']}x{sizes['first_frame_height']}"
    return text
