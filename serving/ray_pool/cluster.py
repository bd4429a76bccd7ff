# SPDX-License-Identifier: Apache-2.0
"""Connections to Ray: a cluster of this process on this machine, or a running one. Their methods block."""

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lamp_trt.engine.errors import EngineError, InputError, LampError
from lamp_trt.serving.ray_pool.config import APPLICATION, DEPLOYMENT, ENVIRONMENT, RayEngines

log = logging.getLogger("lamp_trt")

_LOCK = threading.Lock()
"""Held by each call of Ray here: after a disconnection Ray Serve's functions would start a new cluster."""

OBJECT_STORE_BYTES = 128 << 20
"""Of a cluster on this machine: the videos that are on their way to the front."""


START_TRIES = 3
"""Of a node on this machine, which Ray gives 30 s to start, also if the machine is busy."""


@dataclass(frozen=True)
class Status:
    """Replicas that run and that are to run. failed: why the application cannot run, None if it can."""

    running: int = 0
    starting: int = 0
    failed: str | None = None


class Cluster(Protocol):
    """A connection to the application. open comes first; close may come at any time."""

    def open(self) -> None:
        """Connect. Raises LampErrors."""

    def handle(self) -> Any:
        """The handle of the deployment, once a replica runs. Raises EngineError."""

    def status(self) -> Status:
        """Raises EngineError if the cluster does not answer."""

    def close(self) -> None:
        """Disconnect, and end what `open` started."""


class OwnCluster:
    """A cluster on this machine that ends with this process. Implements Cluster.

    num_gpus: GPUs that Ray is told of; None: those that it finds. folder: Ray's files, removed by close.
    """

    def __init__(self, engines: RayEngines, num_gpus: int | None = None) -> None:
        self._engines, self._num_gpus = engines, num_gpus
        self.folder: Path | None = None

    def open(self) -> None:
        os.environ.setdefault(
            "RAY_AUTH_TOKEN", secrets.token_hex(32)
        )  # else Ray writes one to the home folder
        ray = import_ray()
        from ray import serve

        from lamp_trt.serving.ray_pool.replica import build

        with _LOCK, _errors("Ray cannot be started"):
            folder = self._start(ray)
            engines = replace(self._engines, environment={"TMPDIR": str(folder)})
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            target = serve.RunTarget(build(asdict(engines)), name=APPLICATION, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def _start(self, ray: Any) -> Path:
        """Start a node, and again if it takes longer than Ray allows; its folder."""
        for attempt in range(START_TRIES):
            folder = Path(tempfile.mkdtemp(prefix="lamp-ray-", dir="/tmp"))  # short: for sockets
            self.folder = folder
            try:
                ray.init(
                    num_cpus=int(self._engines.max_replicas * self._engines.num_cpus) + 1,
                    num_gpus=self._num_gpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder),
                )
                break
            except Exception as error:
                _remove(folder)
                if attempt == START_TRIES - 1 or "timed out during startup" not in str(error):
                    raise
                log.warning("Ray: %s Starting it again.", error)
        return folder

    def handle(self) -> Any:
        return _handle()

    def status(self) -> Status:
        return _status()

    def close(self) -> None:
        if self.folder is None:
            return
        import ray
        from ray import serve

        with _LOCK:
            if ray.is_initialized():
                with _logged("Ray Serve did not end in good order"):
                    serve.shutdown()
                ray.shutdown()
        _remove(self.folder)


def _remove(folder: Path) -> None:
    """End what is left of a node's processes, which have its folder in their command lines, and remove it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(folder) in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


class RunningCluster:
    """A cluster in which the application was deployed from its config file. Implements Cluster.

    address: of Ray, as `ray.init` takes it: "auto" on a node of the cluster, or HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def open(self) -> None:
        ray = import_ray()
        from ray import serve

        with _LOCK, _errors(f"the Ray cluster at {self._address!r} cannot be reached"):
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            if APPLICATION not in serve.status().applications:
                raise InputError(
                    f"the Ray cluster at {self._address!r} has no application {APPLICATION!r}. Write its "
                    "file by lamp-trt serve --write-ray-config FILE, and deploy it: serve deploy FILE."
                )

    def handle(self) -> Any:
        return _handle()

    def status(self) -> Status:
        return _status()

    def close(self) -> None:
        import ray

        with _LOCK:
            if ray.is_initialized():
                ray.shutdown()


def import_ray() -> Any:
    """Import ray, with usage reports off. Raises InputError if its authentication is turned off."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise InputError(
            f"RAY_AUTH_MODE is {mode!r}: Ray's ports, which listen on all addresses, would run anyone's "
            "code. Unset it, or set it to token."
        )
    os.environ.update(ENVIRONMENT)
    import ray

    return ray


def start_actor(kind: type) -> Any:
    """An actor of a class on this node, which ends with this process. Raises EngineError."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _LOCK, _errors("an actor cannot be started on Ray"):
        _require_connection()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1)(kind)
        return actor.options(scheduling_strategy=here).remote()


def ray_errors() -> tuple[type[Exception], ...]:
    """Errors by which Ray says that a cluster or an actor does not answer."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return (RayError, RayServeException, OSError, RuntimeError, ValueError)


def _handle() -> Any:
    from ray import serve

    with _LOCK, _errors("the engines cannot be reached"):
        return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _require_connection() -> None:
    import ray

    if not ray.is_initialized():
        raise EngineError("there is no connection to Ray.")


def _status() -> Status:
    from ray import serve

    with _LOCK, _errors("Ray Serve does not answer"):
        _require_connection()
        application = serve.status().applications.get(APPLICATION)
    if application is None:
        return Status(failed=f"there is no application {APPLICATION!r} any more")
    deployment = application.deployments.get(DEPLOYMENT)
    if application.status in ("DEPLOY_FAILED", "DELETING"):
        about = (application.status.value, application.message, deployment.message if deployment else "")
        return Status(failed=": ".join(filter(None, about))[-2000:])
    counts: Mapping[str, int] = {} if deployment is None else deployment.replica_states
    starting = sum(counts.get(state, 0) for state in ("STARTING", "UPDATING", "RECOVERING"))
    return Status(counts.get("RUNNING", 0), starting)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except LampError:
        raise
    except Exception as error:  # ray.init raises Exception itself, when a node does not start in time
        raise EngineError(f"{what}: {error}"[:2000]) from error


@contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except ray_errors() as error:
        log.warning("%s: %s", what, error)
