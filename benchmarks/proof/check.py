# SPDX-License-Identifier: Apache-2.0
"""The form of a check on a GPU."""

from collections.abc import Callable

Check = tuple[str, Callable[[], str]]
"""A claim, and a function that returns the figures it saw or raises if the claim does not hold."""


class Unavailable(Exception):
    """A check cannot be made on this machine; the message says what is missing."""


def require_diffusers(whose: str) -> None:
    """Raise Unavailable if diffusers, whose module is exported, is not installed."""
    try:
        import diffusers  # noqa: F401
    except ModuleNotFoundError as error:
        raise Unavailable(f"{whose} of diffusers, and it is not installed") from error
