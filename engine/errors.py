# SPDX-License-Identifier: Apache-2.0
"""The errors that lamp-trt raises on purpose. Each message names the value, the expectation and the remedy.

The command line prints these as one line and exits with `exit_code`; anything else is a bug and shows
its traceback.
"""

import errno

MACHINE_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOMEM)
)
"""Of an OSError: the machine is at its limit or failed, whatever path the caller gave."""


class LampError(Exception):
    """Base of every deliberate error."""

    exit_code = 1


class InputError(LampError, ValueError):
    """An argument or a file that the caller gave cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint folder is missing, incomplete, or not what it was given as."""


class BundleError(LampError, RuntimeError):
    """A bundle is damaged, of another schema version, in use, or does not hold what was asked for."""


class EngineError(LampError, RuntimeError):
    """A compiled engine, its compiler or its device failed."""


class OutputError(LampError, RuntimeError):
    """A result cannot be written, for a reason that is the machine's: a full disk, say."""


class SafetyError(LampError, RuntimeError):
    """The safety checker refused a picture, or could not judge it. The message names the stage, and nothing
    of the picture."""


class Cancelled(LampError):
    """The caller's cancel token was set. Nothing is broken: what was asked for can be asked for again."""

    exit_code = 130
