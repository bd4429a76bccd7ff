# SPDX-License-Identifier: Apache-2.0
"""The Ray Serve application of the engines: names, options and the config file of `serve deploy`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lamp_trt.engine.errors import InputError
from lamp_trt.serving.pools.pipeline_engine import FACTORY
from lamp_trt.serving.pools.restarts import HANG_SECONDS, RestartPolicy

APPLICATION = "lamp-trt"
DEPLOYMENT = "Engine"
BUILDER = "lamp_trt.serving.ray_pool.replica:build"

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Of every process that uses Ray, set before `ray` is imported: no usage reports, no access without a
token."""

CONSTRUCTOR_TRIES = 6
"""After this number of failures to start replicas the deployment has failed."""


@dataclass(frozen=True)
class RayEngines:
    """The engines of an application: between min_replicas and max_replicas, one in each replica.

    settings: for the factory. num_gpus, num_cpus: what a replica claims in Ray; num_cpus is also the engine's
    number of threads on a CPU. factory: MODULE:FUNCTION, see pools/worker.py. hang_seconds: see
    RestartPolicy. environment: of the replicas. Raises InputError for values that cannot be used.
    """

    settings: Mapping[str, Any]
    max_replicas: int = 1
    min_replicas: int = 1
    num_gpus: float = 0
    num_cpus: float = 1
    factory: str = FACTORY
    hang_seconds: float = HANG_SECONDS
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise InputError(f"replicas are {self.min_replicas} to {self.max_replicas}; expected 1 or more.")
        self.restart_policy()

    def restart_policy(self) -> RestartPolicy:
        """Of an engine's process. When it stays down Ray replaces the replica."""
        return RestartPolicy(max_failures=3, hang_seconds=self.hang_seconds, start_seconds=self.hang_seconds)

    def deployment_options(self) -> dict[str, Any]:
        """Options of the deployment, as Ray Serve names them. One request at a time reaches a
        replica."""
        threads = str(max(1, int(self.num_cpus)))
        return {
            "max_ongoing_requests": 1,
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 5,
                "downscale_delay_s": 300,
            },
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": {"env_vars": {**ENVIRONMENT, "OMP_NUM_THREADS": threads, **self.environment}},
            },
            "health_check_period_s": 5,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": 10,
        }

    def file_text(self) -> str:
        """The config file for `serve deploy`, and for `serveConfigV2` of a KubeRay RayService. It is JSON,
        which is YAML too."""
        application = {
            "name": APPLICATION,
            "route_prefix": None,
            "import_path": BUILDER,
            "args": asdict(self),
            "deployments": [{"name": DEPLOYMENT, **self.deployment_options()}],
        }
        return json.dumps({"proxy_location": "Disabled", "applications": [application]}, indent=2) + "\n"
