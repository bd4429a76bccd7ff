# SPDX-License-Identifier: Apache-2.0
"""The pools of `lamp-trt serve`, by name."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.requests import Placement
from lamp_trt.serving.pools.local_pool import LocalPool
from lamp_trt.serving.pools.pipeline_engine import FACTORY
from lamp_trt.serving.pools.pool import Pool
from lamp_trt.serving.pools.restarts import HANG_SECONDS, RestartPolicy

if TYPE_CHECKING:
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.serving.ray_pool.config import RayEngines


def engine_settings(bundle: "Bundle", placement: Placement, device: str) -> dict[str, Any]:
    """Settings of pipeline_engine.open_engine, as JSON values."""
    folder = placement.engine_dir
    asked = asdict(placement) | {"engine_dir": None if folder is None else str(folder.resolve())}
    return {
        "bundle": str(bundle.path.resolve()),
        "expect_bundle": bundle.digest,
        "placement": {**asked, "device": device},
    }


def local_pool(
    bundle: "Bundle", placement: Placement, devices: Sequence[str], hang_seconds: float = HANG_SECONDS
) -> Pool:
    """devices: one for each engine. hang_seconds: see RestartPolicy, which may raise InputError."""
    engines = {str(i): engine_settings(bundle, placement, device) for i, device in enumerate(devices)}
    return LocalPool(FACTORY, engines, RestartPolicy(hang_seconds=hang_seconds, start_seconds=hang_seconds))


def ray_engines(
    bundle: "Bundle", placement: Placement, engines: int, hang_seconds: float = HANG_SECONDS
) -> "RayEngines":
    """Up to `engines` replicas. Raises InputError for a placement that leaves Ray nothing to decide."""
    from lamp_trt.serving.ray_pool.config import RayEngines

    device = placement.device
    if device.startswith("cuda:"):
        raise InputError(f"device is {device!r}, but Ray chooses the GPU of each engine: give --device cuda.")
    gpus, cpus = (1, 1) if device == "cuda" else (0, placement.num_threads)
    if cpus is None:
        raise InputError(
            "num_threads is not given: Ray places engines by the CPUs that each claims. Give --num-threads."
        )
    settings = engine_settings(bundle, placement, device)
    return RayEngines(settings, engines, num_gpus=gpus, num_cpus=cpus, hang_seconds=hang_seconds)


def ray_pool(bundle: "Bundle", engines: "RayEngines | None", address: str | None) -> Pool:
    """engines: those to be started on this machine, if there is no address of a cluster that has them."""
    from lamp_trt.serving.ray_pool.cluster import Cluster, OwnCluster, RunningCluster
    from lamp_trt.serving.ray_pool.pool import RayPool

    cluster: Cluster
    if address is not None:
        cluster = RunningCluster(address)
    else:
        assert engines is not None
        cluster = OwnCluster(engines)
    return RayPool(cluster, bundle.digest)
