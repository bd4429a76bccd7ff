# SPDX-License-Identifier: Apache-2.0
"""What an AOTInductor package was compiled from and for. torch is not needed to look for one."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import BACKEND
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey, Settings
from lamp_trt.engine.backends.cpu import cpu_features
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.graph.digest import graph_digest

_VECTORS = (("avx512f", "avx512"), ("avx2", "avx2"), ("sve", "sve"), ("asimd", "neon"))
"""Features of a CPU and what they are called together, the widest first."""


def package_key(bundle: Bundle, network: str, device: str, flags: Settings) -> CompiledKey:
    """The key of a package. Weights and motion are attached at load and no part of it.

    device: `cpu_name()` or `cuda_name(...)`. flags: what the compiler was told, see export/aotinductor.py.
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
    """The latest package for a network and device, whatever its flags, after reading all of it.

    engine_dir: None for the bundle's own folder. EngineError, with the command that mends it, if there is
    none, or it is damaged.
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
    features = cpu_features() or frozenset([platform.processor()])
    vectors = next((name for feature, name in _VECTORS if feature in features), "baseline")
    digest = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]
    return f"{platform.machine()} {vectors} (features {digest})"


def cuda_name(capability: tuple[int, int]) -> str:
    """A GPU of that compute capability in this machine, whose CPU runs the host's half of a package."""
    major, minor = capability
    return f"sm_{major}{minor} in {cpu_name()}"


def _compiler() -> str:
    try:
        return f"torch {version('torch')}"
    except PackageNotFoundError:
        raise EngineError(
            "AOTInductor packages need torch, which is not installed: pip install 'lamp-trt[aotinductor]'."
        ) from None
