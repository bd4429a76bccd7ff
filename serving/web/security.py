# SPDX-License-Identifier: Apache-2.0
"""Checks of every request before anything reads its body: Host, Origin, token, size."""

import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from lamp_trt.serving.jobs.metrics import Metrics
from lamp_trt.serving.settings import ServeSettings, error_body

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Any]

OPEN_PATHS = frozenset(("/health", "/"))
OPEN_FOLDER = "/static/"
"""Paths that need no token: the state, and the page, which asks for it."""

EDITS = "/v1/videos/edits"

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Headers of every reply that does not set them itself."""


class BodyTooLarge(Exception):
    """More bytes came than a request may have."""


class Guard:
    """ASGI middleware: replies 421, 403, 401 and 413 itself, and counts the bytes of a coming body."""

    def __init__(self, app: App, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        limit = self._limit(scope["path"])
        refusal = self._refusal(scope["path"], headers, limit)
        if refusal is not None:
            status, message, code = refusal
            self._metrics.refused[code] += 1
            await _reply(send, status, error_body(message, code=code))
            return
        await self._app(scope, self._counted(receive, limit), _with_headers(send))

    def _limit(self, path: str) -> int:
        """Bytes that a body may have."""
        limits = self._settings.limits
        return limits.body_bytes + (limits.video_bytes if path == EDITS else 0)

    def _refusal(self, path: str, headers: Mapping[bytes, bytes], limit: int) -> tuple[int, str, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if _name(host) not in self._settings.hosts:
            return 421, "this server does not answer to this Host; see --allowed-host.", "foreign_host"
        origin = headers.get(b"origin")
        if origin is not None and not _same_origin(origin.decode("latin-1"), host):
            return 403, "requests from pages of another origin are refused.", "foreign_origin"
        token = self._settings.token
        if token is not None and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + token.encode()):
                return 401, "send the server's token: Authorization: Bearer TOKEN.", "unauthorized"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "Content-Length is not a number.", "bad_length"
        if len(length) > 15 or int(length) > limit:
            return 413, too_large_message(limit), "too_large"
        return None

    def _counted(self, receive: Any, limit: int) -> Any:
        count = 0

        async def counted() -> Any:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > limit:
                self._metrics.refused["too_large"] += 1
                raise BodyTooLarge(too_large_message(limit))
            return message

        return counted


def too_large_message(limit: int) -> str:
    return f"the request has more than {limit >> 20} MiB."


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _with_headers(send: Any) -> Any:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [*message.get("headers", ())]
            names = {name.lower() for name, _ in own}
            message = {**message, "headers": own + [pair for pair in HEADERS if pair[0] not in names]}
        await send(message)

    return sending


async def _reply(send: Any, status: int, body: Mapping[str, object]) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
