# SPDX-License-Identifier: Apache-2.0
"""The errors that lamp-trt raises on purpose. Each message names the value, the expectation and the remedy.

The command line prints these as one line and exits with `exit_code`; anything else is a bug and shows
its traceback.
"""

import errno

MACHINE_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOMEM)
)
"""OSError codes that mean that the machine is at a limit or failed, whatever path the caller gave."""


class LampError(Exception):
    """Base of every deliberate error."""

    exit_code = 1


class InputError(LampError, ValueError):
    """An argument or file given by the caller cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint folder is missing, incomplete, or of another kind than expected."""


class BundleError(LampError, RuntimeError):
    """A bundle is damaged, of another schema version, in use, or lacks the requested item."""


class EngineError(LampError, RuntimeError):
    """A compiled engine, its compiler or its device failed."""


class UnavailableError(EngineError):
    """A requirement of a backend is missing on this machine: a library, a compiler, a GPU."""


class OutputError(LampError, RuntimeError):
    """A result cannot be written because of the machine, for example a full disk."""


class SafetyError(LampError, RuntimeError):
    """The safety checker refused a picture, or could not judge it. The message names the stage, and nothing
    of the picture."""


class Cancelled(LampError):
    """The caller's cancel token was set. The pipeline stays usable and the call can be repeated."""

    exit_code = 130
