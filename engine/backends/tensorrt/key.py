# SPDX-License-Identifier: Apache-2.0
"""Cache keys of TensorRT engines, and lookup of the engine for a network."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP
from lamp_trt.engine.graph.digest import graph_digest
from lamp_trt.engine.graph.model import bundle_model, external_tensors

ANY_RTX = "any RTX"
"""Device of engines that TensorRT-RTX built for every GPU that it supports."""
AMPERE_PLUS = "sm_80+"
"""Device of engines with hardware compatibility "ampere_plus"."""


def engine_key(
    bundle: Bundle,
    network: str,
    module: ModuleType,
    device: str,
    *,
    motion: str | None = None,
    refittable: bool = False,
) -> CompiledKey:
    """The key of an engine, without profile and flags, which are choices of the build.

    device: like "sm_90". motion: of the LAMP UNet; None: the default one. refittable: motions can be
    exchanged, so none is part of the key. Reads the graph but no weights. BundleError for an unknown network
    or motion.
    """
    manifest = bundle.manifest
    if network == LAMP.unet:
        motion = manifest.default_motion if motion is None else motion
        bundle.motion(motion)
        assert motion is not None
        own = manifest.files[manifest.motions[motion].file].sha256
        baked_motion = "" if refittable else own
    else:
        motion, own, baked_motion = None, "", ""
    model = bundle_model(bundle, network, motion)
    digests = {manifest.files[tensor.file].sha256 for tensor in external_tensors(model)} - {own}
    return CompiledKey(
        network=network,
        backend=trt.backend(module),
        graph=graph_digest(bundle.graph_bytes(network)),
        weights=hashlib.sha256("".join(sorted(digests)).encode("ascii")).hexdigest(),
        motion=baked_motion,
        profile={},
        flags={},
        compiler=trt.compiler(module),
        device=device,
    )


def find_engine(
    bundle: Bundle,
    network: str,
    module: ModuleType,
    device: str,
    motion: str | None = None,
    engine_dir: Path | None = None,
    *,
    refittable: bool | None = None,
) -> CompiledEngine:
    """Return the engine in `engine_dir` (None: the bundle's own folder) for a network on `device`, like
    "sm_90".

    refittable: whether motions can be exchanged in it; None: prefer one where they can, else the one built
    for `motion`. EngineError, with the command that builds it, if it is missing or damaged.
    """
    folder = bundle.engine_folder if engine_dir is None else engine_dir
    rebuild = f"lamp-trt build --backend tensorrt --out {bundle.path}"
    if engine_dir is not None:
        rebuild += f" --engine-dir {engine_dir}"
    keys = list(_candidates(bundle, network, module, device, motion, refittable))
    for key in keys:
        key = compiled.chosen(folder, key)
        if compiled.has(folder, key):
            return compiled.find(folder, key, rebuild)
    if not keys:
        raise EngineError(
            f"motion {motion} has a complete UNet and cannot be refitted. Build its engine: {rebuild}"
        )
    keys.sort(key=lambda key: key.motion == "")  # report on the requested motion, not on refit
    return compiled.find(folder, compiled.nearest(folder, keys), rebuild)


def can_exchange(bundle: Bundle, motion: str | None) -> bool:
    """Whether a motion consists only of motion tensors and uses the shared weights."""
    return bundle.motion(motion).kind == "motion"


def _candidates(
    bundle: Bundle,
    network: str,
    module: ModuleType,
    device: str,
    motion: str | None,
    refittable: bool | None,
) -> Iterator[CompiledKey]:
    """Keys of suitable engines, best first."""
    kinds = [True, False] if refittable is None else [refittable]
    if not trt.can_refit(module):
        kinds = [False]
    if network != LAMP.unet:
        kinds = [False]
    elif not can_exchange(bundle, motion):
        kinds = [kind for kind in kinds if not kind]
    portable = ANY_RTX if trt.is_rtx(module) else AMPERE_PLUS
    for kind in kinds:
        key = engine_key(bundle, network, module, device, motion=motion, refittable=kind)
        for name in (device, portable):
            for compiler in (trt.compiler(module), trt.compatible_compiler(module)):
                yield dataclasses.replace(key, device=name, compiler=compiler)
