# SPDX-License-Identifier: Apache-2.0
"""Descriptions of a bundle's files (path, key, how to write them), and the making of missing ones.

torch is loaded only to write files.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lamp_trt.engine.bundle.atomic_files import NewFile
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import FileEntry
from lamp_trt.engine.bundle.paths import graph_path, motion_path, weights_path
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.families import COMPONENTS, LAMP
from lamp_trt.engine.files.tokenizer import tokenizer_files
from lamp_trt.export.recipe import Recipe, motion_graph_key, shared_graph_key

log = logging.getLogger("lamp_trt")

GRAPH_KEY = "lamp_trt_key"
"""Name of the metadata entry for a graph's key (without the motion or shared component it references)."""

PathOf = Callable[[str], Path]
"""Path in the bundle → current path of the file, which is staged until the commit."""


@dataclass(frozen=True)
class PlannedFile:
    """A file of a bundle and how to write it.

    key         digest of everything that it is made from
    write       writes the content; gets the new file and the paths of the bundle's other files
    size_bytes  upper limit of its size in bytes; 0 for small files
    """

    path: str
    key: str
    write: Callable[[NewFile, PathOf], None]
    size_bytes: Callable[[], int] = lambda: 0


@dataclass(frozen=True)
class MadeFile:
    """One file of the bundle after a command; `seconds` is None for a file that existed before."""

    path: str
    size_bytes: int
    seconds: float | None


@dataclass
class BuildReport:
    """The result of a command: the files made and kept in the bundle at `path`, and its new digest."""

    path: Path
    files: list[MadeFile] = field(default_factory=list)
    full_motions: list[str] = field(default_factory=list)
    digest: str = ""
    seconds: float = 0.0


class FileMaker:
    """Makes a bundle's files one by one, skipping those that exist under the same key."""

    def __init__(self, writer: BundleWriter, report: BuildReport) -> None:
        self.writer, self.report = writer, report

    def make(self, planned: PlannedFile) -> FileEntry:
        """Write a file, or confirm the existing one if its key is the same."""
        start = time.monotonic()
        seconds = None
        if not self.writer.have(planned.path, planned.key):
            with self.writer.create(planned.path, planned.key) as file:
                log.info("making %s", planned.path)
                planned.write(file, self.writer.path_of)
            seconds = time.monotonic() - start
        entry = self.writer.files[planned.path]
        self.report.files.append(MadeFile(planned.path, entry.size, seconds))
        return entry


def weights_file(recipe: Recipe, component: str) -> PlannedFile:
    """The file weights/<component>.safetensors."""
    files, precision = recipe.components[component].files, recipe.precision_of(component)
    is_stored = COMPONENTS[component].is_stored

    def write(file: NewFile, path_of: PathOf) -> None:
        from lamp_trt.export.convert import write_component
        from lamp_trt.export.networks import check_component

        check_component(files)
        write_component(file, files, precision, wanted=is_stored)

    def size_bytes() -> int:
        from lamp_trt.export.convert import stored_bytes

        return stored_bytes(files, precision, is_stored)

    return PlannedFile(weights_path(component), recipe.weights_key(component), write, size_bytes)


def graph_file(
    recipe: Recipe,
    network: str,
    stored_in: str,
    default_motion: str | None,
    entry_of: Callable[[str], FileEntry],
) -> PlannedFile:
    """The file <network>.onnx, which references the weights of component `stored_in` and the default motion.

    entry_of: entries of the referenced files, which must have been made before.
    """
    graph_key = key = recipe.graph_key(network)
    weight_files = [weights_path(stored_in)]
    if stored_in != recipe.specs[network].component:
        key = shared_graph_key(graph_key, entry_of(weight_files[0]).sha256)
    if network == LAMP.unet:
        assert default_motion is not None
        weight_files.append(motion_path(default_motion))
        key = motion_graph_key(graph_key, entry_of(weight_files[-1]).key)

    def write(file: NewFile, path_of: PathOf) -> None:
        from lamp_trt.export.networks import exported_network
        from lamp_trt.export.onnx import Location, export_graph

        locations = {
            name: Location(path, ref)
            for path in weight_files
            for name, ref in read_weight_file(path_of(path)).tensors.items()
        }
        module = exported_network(recipe, network)
        file.write(export_graph(module, *recipe.io(network), locations, metadata={GRAPH_KEY: graph_key}))

    return PlannedFile(graph_path(network), key, write)


def relocated_graph(
    network: str, weight_files: list[str], key_of: Callable[[str], str], path_of: PathOf
) -> PlannedFile:
    """The existing graph of `network`, changed to reference `weight_files` for the tensors that they hold.

    The last file that holds a tensor is used. key_of: the new file's key from the value of GRAPH_KEY.
    """
    import onnx

    from lamp_trt.engine.graph.locate import relocate_initializers

    model = onnx.load(path_of(graph_path(network)), load_external_data=False)
    for file in weight_files:
        relocate_initializers(model, file, read_weight_file(path_of(file)).tensors)
    base_key = next(entry.value for entry in model.metadata_props if entry.key == GRAPH_KEY)
    data = model.SerializeToString(deterministic=True)
    return PlannedFile(graph_path(network), key_of(base_key), lambda file, path_of: _write(file, data))


def tokenizer_copies(name: str, folder: Path, cache: DigestCache) -> list[PlannedFile]:
    """Copies of the checkpoint's tokenizer files in the bundle's folder `name`."""

    def copy(source: Path) -> Callable[[NewFile, PathOf], None]:
        def write(file: NewFile, path_of: PathOf) -> None:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file)

        return write

    return [
        PlannedFile(f"{name}/{file}", cache.digest(source), copy(source))
        for file, source in tokenizer_files(folder).items()
    ]


def _write(file: NewFile, data: bytes) -> None:
    file.write(data)
