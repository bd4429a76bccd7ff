# SPDX-License-Identifier: Apache-2.0
"""Standard streams of the `lamp-trt` command that accept any text and whose failures do not stop work."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_ENCODING_ERRORS = "lamp_trt_any_text"


class SafeStream(io.TextIOBase):
    """A text stream over another one, or over None if the descriptor was closed at the start.

    A character that the encoding lacks is written as `\\uXXXX`, a byte of a file name as that byte. The first
    error is kept in `lost`; later output is discarded, including that of native code to the descriptor.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._errors: str | None = None
        self.lost: OSError | ValueError | None = None
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            self._errors = stream.errors
            stream.reconfigure(errors=_ENCODING_ERRORS)

    def write(self, text: str) -> int:
        if self._stream is None:
            self.lost = self.lost or ValueError("it is closed")
        elif not self.lost:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def release(self) -> None:
        """Flush, and restore the settings of the underlying stream."""
        self.flush()
        if self._errors and isinstance(self._stream, io.TextIOWrapper) and not self._stream.closed:
            self._stream.reconfigure(errors=self._errors)

    def _lose(self, error: OSError | ValueError) -> None:
        """Redirect further output to /dev/null, so that the interpreter's last flush does not fail again."""
        self.lost = error
        try:
            descriptor = self.fileno()
        except (OSError, ValueError):
            return  # closed, or not a file
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, descriptor)
        os.close(null)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "ascii"

    @property
    def buffer(self) -> Any:
        """The underlying stream's buffer. AttributeError if it has none."""
        return self._stream.buffer  # type: ignore[union-attr]


@contextmanager
def safe_streams() -> Iterator[tuple[SafeStream, SafeStream]]:
    """Replace sys.stdout and sys.stderr by SafeStreams within the block."""
    _occupy_standard_descriptors()
    codecs.register_error(_ENCODING_ERRORS, _any_text)
    before = sys.stdout, sys.stderr
    out, err = SafeStream(sys.stdout), SafeStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
        out.release()
        err.release()


def _occupy_standard_descriptors() -> None:
    """Open descriptors 0 to 2 on /dev/null if they are closed: otherwise the next opened file, such as a
    video, gets one of them, and output of native code ends up in it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor


def _any_text(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: write escaped bytes as bytes, other characters as backslash escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff" and not error.encoding.lower().startswith(("utf-16", "utf-32")):
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1
