# SPDX-License-Identifier: Apache-2.0
"""Sharing of one weight file by two components with equal weights; graphs of both reference it.

A component's record may name another one that has the same tensors in the published checkpoints (`same_as`):
SDXL's first text encoder is Stable Diffusion's. If the given checkpoints agree, the component has no file of
its own. Converted weights are compared by file digest, a checkpoint that is not converted yet tensor by
tensor. The bundle is the same whether it is built at once or part by part.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial

from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, NetworkEntry
from lamp_trt.engine.bundle.paths import graph_path, weights_path
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.families import COMPONENTS, NETWORKS
from lamp_trt.engine.networks import Component
from lamp_trt.export.planned import FileMaker, log, relocated_graph
from lamp_trt.export.recipe import Recipe, shared_graph_key


def is_shared(maker: FileMaker, recipe: Recipe, component: str, kept: Manifest | None) -> bool:
    """Whether a component's weights equal those of its `same_as`, whose file must have been made before.

    kept: the bundle's manifest before this build.
    """
    writer, other = maker.writer, COMPONENTS[component].same_as
    there = _entry(writer, kept, other) if other else None
    if there is None:
        return False
    own = weights_path(component)
    if writer.have(own, recipe.weights_key(component)):
        shared = writer.files[own].sha256 == there.sha256
        if shared:
            del writer.files[own]
        return shared
    for network in _networks_of(component, recipe.networks):
        if writer.have(graph_path(network), shared_graph_key(recipe.graph_key(network), there.sha256)):
            return True
    from lamp_trt.export.convert import equals_stored

    stored = read_weight_file(writer.path_of(weights_path(other)))
    shared = equals_stored(recipe.components[component].files, stored, recipe.precision_of(component))
    if shared:
        title, origin = COMPONENTS[component].title, COMPONENTS[other].origin
        log.info("%s is %s's: its weights are stored once", title, origin.holds)
    return shared


def share_kept(maker: FileMaker, recipe: Recipe, kept: Manifest | None) -> dict[str, NetworkEntry]:
    """Make kept networks reference equal weights of a component that this build adds; their new entries."""
    entries: dict[str, NetworkEntry] = {}
    for component, network in _kept_networks(recipe, kept):
        assert kept is not None
        entry, added = kept.networks[network], maker.writer.files.get(weights_path(component.same_as))
        if entry.component != component.name or added is None:
            continue
        if kept.files[weights_path(component.name)].sha256 == added.sha256:
            key_of = partial(shared_graph_key, weights_sha256=added.sha256)
            files = [weights_path(component.same_as)]
            maker.make(relocated_graph(network, files, key_of, maker.writer.path_of))
            entries[network] = dataclasses.replace(entry, component=component.same_as)
    return entries


def check_shared_stay(recipe: Recipe, kept: Manifest) -> None:
    """Raise BundleError if this build would replace weights that a kept network of another component uses."""
    for component, network in _kept_networks(recipe, kept):
        other = component.same_as
        if kept.networks[network].component != other or other not in recipe.components:
            continue
        if kept.files[weights_path(other)].key != recipe.weights_key(other):
            origin = component.origin
            raise BundleError(
                f"the bundle's {network} uses the weights of {other}, which this build would replace. "
                f"Give its checkpoint too ({origin.option} {origin.value}), or choose another --out."
            )


def _kept_networks(recipe: Recipe, kept: Manifest | None) -> Iterator[tuple[Component, str]]:
    """Networks of components with `same_as` that the bundle holds and this build does not make."""
    for component in COMPONENTS.values():
        if component.same_as and kept is not None:
            for network in _networks_of(component.name, kept.networks):
                if network not in recipe.networks:
                    yield component, network


def _networks_of(component: str, networks: Iterable[str]) -> list[str]:
    return [name for name in networks if name in NETWORKS and NETWORKS[name].component == component]


def _entry(writer: BundleWriter, kept: Manifest | None, component: str) -> FileEntry | None:
    """The entry of a component's weight file, made or confirmed by this build or kept; None if missing."""
    path = weights_path(component)
    return writer.files.get(path) or (kept.files.get(path) if kept else None)
