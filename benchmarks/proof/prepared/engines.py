# SPDX-License-Identifier: Apache-2.0
"""Engines of a proof's bundles, compiled into one folder that all parts share: a network whose graph is the
same in two bundles is compiled once."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.proof.check import Unavailable
from lamp_trt.benchmarks.proof.prepared.locks import locked
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.registry import device_engine, find_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import UnavailableError
from lamp_trt.export.candidates.registry import SETTINGS

FOLDER = "engines"
"""Within a proof's folder."""

UNMEASURED = {"forms": "default"} | {setting.name: False for setting in SETTINGS}
"""Build options unless others are given: a build that measures needs the GPU for itself."""


def engine_folder(root: Path, flags: Mapping[str, Any]) -> Path:
    """Of engines that were built with `flags`. Each set of options has its own: of engines in one folder that
    differ in options, the latest is loaded."""
    words = [f"{name}-{value}" for name, value in sorted(flags.items())]
    return root / re.sub(r"[^\w.-]+", "-", "-".join([FOLDER, *words]))


def load_network(backend: str, work: Any, network: str) -> Any:
    """A network of a work's bundle on a backend, compiled first where that is needed; Unavailable where it
    cannot be."""
    bundle, folder = work.bundle, engine_folder(work.folder, work.build_flags)
    motions = work.subject.motions[: 1 if work.hoist else None]
    compile_networks(backend, bundle, work.options, folder, motions, flags=work.build_flags)
    try:
        return device_engine(
            backend,
            bundle,
            network,
            device=work.device.ordinal,
            stream=work.device.stream,
            motion=work.subject.motion if network == work.subject.network else None,
            engine_dir=folder,
        )
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    except UnavailableError as error:
        raise Unavailable(str(error)) from error


def compile_networks(
    backend: str,
    bundle: Bundle,
    checkpoints: Any,
    folder: Path,
    motions: tuple[str, ...] = (),
    networks: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
) -> None:
    """Those of the bundle's networks (all if none is named) that `folder` does not hold. checkpoints: the
    BuildOptions of the bundle; flags: of BuildRequest. Unavailable where the backend or its
    compiler is missing."""
    record = find_backend(backend)
    start = time.perf_counter()
    try:
        record.library()
        if record.build is None:
            return
        for network in networks or tuple(bundle.manifest.networks):
            with locked(folder, f"{backend}-{network}"):  # another process may be compiling it
                record.build(
                    BuildRequest(
                        bundle,
                        engine_dir=folder,
                        device="cuda",
                        networks=(network,),
                        motions=motions,
                        checkpoints=checkpoints,
                        flags=UNMEASURED | dict(flags or {}),
                    )
                )
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    except UnavailableError as error:
        raise Unavailable(str(error)) from error
    seconds = time.perf_counter() - start
    if seconds > 1:
        print(f"{backend}: compiled in {seconds:.1f} s", flush=True)
