# SPDX-License-Identifier: Apache-2.0
"""Checked settings of a server, and the description of its model for clients."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from ipaddress import ip_address
from pathlib import Path

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.text import TextError, read_text
from lamp_trt.runtime.algorithm.config import checked, setting

MIN_TOKEN_CHARS = 16

_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|\[?[0-9a-f:.]*:[0-9a-f:.]*\]?", re.ASCII | re.I)
"""A host name in ASCII or an IPv4 address; an IPv6 address, in brackets or not."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    body_bytes: of a request's body. image_bytes: of an uploaded image. video_bytes: of an uploaded clip, for
    which a request to edit may have that much more. body_seconds: until the whole body has come.
    """

    body_bytes: int = 12 << 20
    image_bytes: int = 8 << 20
    video_bytes: int = 64 << 20
    body_seconds: float = 60.0


@dataclass(frozen=True)
class ModelInfo:
    """The model that a server offers.

    motions: names. size: height, width in pixels. safety: what happens to flagged pictures, or "off".
    has_checker: whether the bundle holds a safety checker. makes_first_frames: whether input_reference may be
    left out. examples: looping pictures of motions, by name.
    """

    name: str
    motions: tuple[str, ...]
    default_motion: str
    size: tuple[int, int]
    num_frames: int
    safety: str
    has_checker: bool
    makes_first_frames: bool
    bundle: str
    """The bundle's digest."""
    examples: Mapping[str, Path] = field(default_factory=dict)

    @property
    def size_text(self) -> str:
        return f"{self.size[1]}x{self.size[0]}"

    def seconds(self, fps: float) -> str:
        """Duration in seconds, like "2" or "0.5"."""
        return f"{float(Fraction(self.num_frames) / Fraction(fps).limit_denominator(1001)):.6g}"


@dataclass(frozen=True)
class ServeSettings:
    """Settings of a front. Raises InputError for values that cannot be used.

    max_queued     jobs that may wait; one more is refused with 429
    job_ttl        seconds that a finished job and its files are kept
    token          None: no Authorization is asked for, which is possible on loopback only
    allowed_hosts  names in the Host header that are answered, besides loopback's and `host`
    """

    jobs_dir: Path = setting(Path("lamp-trt-jobs"), "folder of jobs and their videos", metavar="DIR")
    host: str = setting("127.0.0.1", "address; off loopback --token-file is required", metavar="HOST")
    port: int = setting(8000, "0 takes a free one", high=65535, metavar="PORT")
    max_queued: int = setting(64, "waiting videos; more are refused", low=1, metavar="N")
    job_ttl: float = setting(24 * 3600.0, "seconds that finished videos are kept", metavar="SECONDS")
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        vars(self).update(checked(self))
        if not 0 < self.job_ttl < 1e10:
            raise InputError(f"job_ttl is {self.job_ttl}; expected seconds above 0.")
        for host in (self.host, *self.allowed_hosts):
            if not _HOST.fullmatch(host):
                raise InputError(
                    f"host {host!r:.100} is no name or address: give it without http://, port or path."
                )
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"host is {self.host!r}, which other machines can reach: give --token-file FILE, or listen "
                "on 127.0.0.1."
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Names in the Host header that are answered, in lower case and without a port."""
        own = {self.host} if self.host not in ("0.0.0.0", "::") else set()
        return frozenset(
            name.lower().strip("[]") for name in {"localhost", "127.0.0.1", "::1", *own, *self.allowed_hosts}
        )


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """The token in a file. Raises InputError unless it is one line of at least MIN_TOKEN_CHARS printable
    ASCII characters without spaces."""
    try:
        token = read_text(path, 4096).strip()
    except TextError as error:
        raise InputError(f"the token file {path} {error}") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not all(33 <= ord(c) < 127 for c in token):
        raise InputError(
            f"the token file {path} does not hold a token: expected one line of at least {MIN_TOKEN_CHARS} "
            "ASCII letters, digits or signs. `openssl rand -hex 24` makes one."
        )
    return token


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Mapping[str, object]:
    """An error as OpenAI's API writes it. param: the field at fault."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
