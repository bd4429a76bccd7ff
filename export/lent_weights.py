# SPDX-License-Identifier: Apache-2.0
"""SDXL's first text encoder is Stable Diffusion's, CLIP ViT-L, in the published checkpoints: stored once.

Where both components hold the same tensors, SDXL's graph points into weights/text_encoder.safetensors and
has no file of its own. Equal tensors make equal weight files, so two files are compared by their digests and
only a checkpoint that is not converted yet by its tensors. A bundle comes out the same whether its halves
were built together or one after the other.
"""

import dataclasses

from lamp_trt.engine.bundle.atomic_files import NewFile
from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, NetworkEntry
from lamp_trt.engine.bundle.paths import graph_path, weights_path
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError
from lamp_trt.export.bundle_files import GRAPH_KEY, FileMaker, log
from lamp_trt.export.recipe import Recipe, lent_graph_key

BORROWER, LENDER = "sdxl_text_encoder", "text_encoder"
"""Both are a component and the network of that name."""


def borrows(maker: FileMaker, recipe: Recipe, kept: Manifest | None) -> bool:
    """Whether `recipe`'s SDXL text encoder has its weights in the lender's file, which must be made first."""
    lent = _lent(maker.writer, kept)
    if lent is None:
        return False
    own = weights_path(BORROWER)
    if maker.writer.have(own, recipe.weights_key(BORROWER)):
        borrowed = maker.writer.files[own].sha256 == lent.sha256
        if borrowed:
            del maker.writer.files[own]
        return borrowed
    key = lent_graph_key(recipe.graph_key(BORROWER), lent.sha256)
    if maker.writer.have(graph_path(BORROWER), key):
        return True
    from lamp_trt.export.convert import equals_stored

    stored = read_weight_file(maker.writer.path_of(weights_path(LENDER)))
    borrowed = equals_stored(recipe.components[BORROWER].files, stored, recipe.precision_of(BORROWER))
    if borrowed:
        log.info("SDXL's first text encoder is Stable Diffusion's: its weights are stored once")
    return borrowed


def borrow_later(maker: FileMaker, recipe: Recipe, kept: Manifest | None) -> dict[str, NetworkEntry]:
    """The kept SDXL text encoder's new entry if this build makes the lender that it lacked, else nothing."""
    if kept is None or BORROWER not in kept.networks or BORROWER in recipe.networks:
        return {}
    entry, lent = kept.networks[BORROWER], maker.writer.files.get(weights_path(LENDER))
    if entry.component == LENDER or lent is None or kept.files[weights_path(BORROWER)].sha256 != lent.sha256:
        return {}
    _point_graph_at_lender(maker, lent)
    return {BORROWER: dataclasses.replace(entry, component=LENDER)}


def check_lender_stays(recipe: Recipe, kept: Manifest) -> None:
    """Raise BundleError if this build would replace weights that a kept SDXL text encoder borrows."""
    entry = kept.networks.get(BORROWER)
    if entry is None or entry.component != LENDER or BORROWER in recipe.networks:
        return
    if LENDER in recipe.components and kept.files[weights_path(LENDER)].key != recipe.weights_key(LENDER):
        raise BundleError(
            f"the bundle's {BORROWER} uses the weights of {LENDER}, which this build would replace. "
            "Give its checkpoint too (--sdxl DIR), or choose another --out."
        )


def _point_graph_at_lender(maker: FileMaker, lent: FileEntry) -> None:
    import onnx

    from lamp_trt.engine.graph.locate import relocate_initializers

    path = graph_path(BORROWER)
    model = onnx.load(maker.writer.path_of(path), load_external_data=False)
    stored = read_weight_file(maker.writer.path_of(weights_path(LENDER)))
    relocate_initializers(model, weights_path(LENDER), stored.tensors)
    base_key = next(p.value for p in model.metadata_props if p.key == GRAPH_KEY)

    def write(file: NewFile) -> None:
        file.write(model.SerializeToString(deterministic=True))

    maker.make(path, lent_graph_key(base_key, lent.sha256), write)


def _lent(writer: BundleWriter, kept: Manifest | None) -> FileEntry | None:
    """The lender's weight file, made or confirmed by this build or kept."""
    path = weights_path(LENDER)
    return writer.files.get(path) or (kept.files.get(path) if kept else None)
