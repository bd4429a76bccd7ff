# SPDX-License-Identifier: Apache-2.0
"""Cache keys of AOTInductor packages, and lookup of the package for a network. Imports no torch."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import BACKEND
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey, Settings
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.graph.digest import graph_digest

_CPUINFO = Path("/proc/cpuinfo")
_VECTORS = (("avx512f", "avx512"), ("avx2", "avx2"), ("sve", "sve"), ("asimd", "neon"))
"""CPU features and the names of their vector extensions, widest first."""


def package_key(bundle: Bundle, network: str, device: str, flags: Settings) -> CompiledKey:
    """The key of a package. Weights and motion are attached at load and not part of it.

    device: `cpu_name()` or `cuda_name(...)`. flags: compiler options, see export/aotinductor.py.
    EngineError if torch is not installed.
    """
    entry = bundle.network(network)
    return CompiledKey(
        network=network,
        backend=BACKEND.name,
        graph=graph_digest(bundle.graph_bytes(network)),
        weights="",
        motion="",
        profile={tensor.name: tensor.shape for tensor in entry.inputs},
        flags=flags,
        compiler=_compiler(),
        device=device,
    )


def find_package(bundle: Bundle, network: str, device: str, engine_dir: Path | None) -> CompiledEngine:
    """Return the latest package for a network and device, with any flags and verified contents.

    engine_dir: None for the bundle's own folder. EngineError, with the command that builds it, if it is
    missing or damaged.
    """
    folder = engine_dir or bundle.engine_folder
    key = compiled.chosen(folder, package_key(bundle, network, device, {}))
    options = " --device cuda" * device.startswith("sm_") + (
        f" --engine-dir {engine_dir}" if engine_dir else ""
    )
    return compiled.find(
        folder, key, f"lamp-trt build … --backend {BACKEND.name}{options} --out {bundle.path}"
    )


def cpu_name() -> str:
    """This machine and its instruction set, like "x86_64 avx512 (features 3f2a91c0)".

    Packages are compiled for exactly the CPU of their machine, so the name covers each of its features.
    """
    features = _cpu_features()
    vectors = next((name for feature, name in _VECTORS if feature in features), "baseline")
    digest = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]
    return f"{platform.machine()} {vectors} (features {digest})"


def cuda_name(capability: tuple[int, int]) -> str:
    """A GPU of that compute capability in this machine, whose CPU runs the host's half of a package."""
    major, minor = capability
    return f"sm_{major}{minor} in {cpu_name()}"


def _cpu_features() -> frozenset[str]:
    """Of the first processor, as Linux lists them; elsewhere the processor's name stands for them."""
    if not _CPUINFO.is_file():
        return frozenset([platform.processor()])
    for line in _CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def _compiler() -> str:
    try:
        return f"torch {version('torch')}"
    except PackageNotFoundError:
        raise EngineError(
            "AOTInductor packages need torch, which is not installed: pip install 'lamp-trt[aotinductor]'."
        ) from None
