# SPDX-License-Identifier: Apache-2.0
"""Cache keys of AOTInductor packages, and lookup of the package for a network. Imports no torch."""

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
"""CPU features and the names of their vector extensions, widest first."""


_NOT_INSTRUCTIONS = """
    acpi apic arat arch_capabilities arch_perfmon aperfmperf art brs cat_l2 cat_l3 cdp_l3 cmp_legacy
    constant_tsc cpb cpuid cqm cqm_llc cqm_mbm_local cqm_mbm_total cqm_occup_llc dca debug_swap ds_cpl
    dtes64 dtherm epb ept ept_ad est extapic extd_apicid flexpriority flush_l1d hfi ht hwp
    hwp_act_window hwp_epp hwp_notify hwp_pkg_req hypervisor ibpb ibrs ibrs_enhanced ibs ida intel_ppin
    intel_pt invpcid_single irperf la57 lbrv mba md_clear mdt monitor nonstop_tsc nopl npt nrip_save
    osvw pbe pdcm perfctr_core perfctr_nb perfctr_llc pln pti pts rdt_a rep_good rrsba_ctrl sev sev_es
    sev_snp skinit smca smep smap spec_ctrl split_lock_detect ss ssbd stibp succor svm svm_lock tm tm2
    topoext tpr_shadow tsc_adjust tsc_deadline_timer tsc_known_freq tsc_scale umip vgif vmx vmcb_clean
    vmmcall vnmi vpid v_spec_ctrl wdt x2apic xtopology
"""
"""Features that Linux lists and that no compiled code uses: power, timers, virtualisation, mitigations.
Machines with the same processor differ in them by kernel and hypervisor."""


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

    Packages are compiled for exactly the CPU of their machine (-march=native), so the name covers each of its
    features that compiled code may use. One that is not known to be another counts as such.
    """
    features = cpu_features() or frozenset([platform.processor()])
    features -= frozenset(_NOT_INSTRUCTIONS.split())
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
