# SPDX-License-Identifier: Apache-2.0
"""The server's process: a socket, uvicorn, the front and its pool."""

import logging
import signal
import socket
from collections.abc import Callable

from lamp_trt.engine.errors import InputError
from lamp_trt.serving.jobs.front import Front
from lamp_trt.serving.jobs.store import JobStore
from lamp_trt.serving.pools.pool import Pool
from lamp_trt.serving.settings import ModelInfo, ServeSettings
from lamp_trt.serving.web.app import make_app

log = logging.getLogger("lamp_trt")

SHUTDOWN_SECONDS = 3
"""How long open requests may take to end after SIGTERM or SIGINT."""


def serve(
    settings: ServeSettings, model: ModelInfo, pool: Pool, on_url: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until SIGTERM or SIGINT. on_url: called with the address once it is open.

    Raises InputError if the address or the jobs folder cannot be used.
    """
    import uvicorn

    listening = listen_at(settings)
    with listening:
        store = JobStore(settings.jobs_dir)
        app = make_app(Front(store, pool, model, settings))
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            log_config=None,
            log_level="error",  # not a line for each request that is not HTTP
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=1000,
        )
        # uvicorn raises the signal that it was stopped by again; shells start background jobs with it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_url(_url(settings.host, listening.getsockname()[1]))
        uvicorn.Server(config).run(sockets=[listening])


def listen_at(settings: ServeSettings) -> socket.socket:
    """A socket that listens at the settings' host and port. Raises InputError if that is impossible."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise InputError(
            f"{host}, port {settings.port} cannot be listened on: {error.strerror or error}. "
            "Choose another --host or --port."
        ) from error
    # Connections inherit it; asyncio sets it only on sockets made with IPPROTO_TCP. Without it the end of a
    # reply waits for the delayed ACK of its beginning: 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _url(host: str, port: int) -> str:
    host = host.strip("[]")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
