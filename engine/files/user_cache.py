# SPDX-License-Identifier: Apache-2.0
"""The user's cache folder for digests and compiled kernels. Optional: everything works without it."""

import functools
import logging
import os
import pwd
import secrets
from pathlib import Path

log = logging.getLogger("lamp_trt")


def cache_folder(name: str) -> Path | None:
    """$XDG_CACHE_HOME/lamp-trt/NAME, or ~/.cache/lamp-trt/NAME; it need not exist.

    Relative paths are ignored, as the XDG specification requires. None if neither is available, as in a
    container whose user id has no account, without HOME; this is logged once at debug level.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured, "lamp-trt", name)
    home = _home()
    if home is None:
        _say_once(
            logging.DEBUG,
            "nothing is kept between runs: neither XDG_CACHE_HOME nor HOME is an absolute path, and user "
            f"{os.getuid()} has no account",
        )
        return None
    return Path(home, ".cache", "lamp-trt", name)


def keep(path: Path, data: bytes, cost: str) -> bool:
    """Write a cache file atomically; return whether that succeeded.

    Several processes may write the same file. A failure is logged once per folder, with `cost`, the effect of
    the missing cache.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        _say_once(logging.WARNING, f"cannot write to {path.parent} ({error.strerror}): {cost}")
        return False
    return True


def _home() -> str | None:
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return home if os.path.isabs(home) else None


@functools.cache
def _say_once(level: int, message: str) -> None:
    log.log(level, "%s", message)
