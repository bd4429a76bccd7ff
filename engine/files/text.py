# SPDX-License-Identifier: Apache-2.0
"""Reading of text that users may have edited: UTF-8 with or without a byte order mark, and JSON.

A bundle's own manifest and journal are read by strict_json.py instead.
"""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from lamp_trt.engine.files.strict_json import unique_keys

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""UTF-32's little-endian mark begins with UTF-16's."""
_BOM = "\ufeff"
_REMEDY = "Save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8)."
_SAMPLE_BYTES = 4096
_MIN_NUL_SHARE = 0.05
"""Share of NUL among the high bytes of UTF-16: spaces, digits and line ends have one in every script."""


class TextError(ValueError):
    """A text cannot be read. The message completes the sentence that begins with the file's name."""


def decode_text(data: bytes) -> str:
    """Decode UTF-8, without byte order marks at the beginning. TextError, with the remedy, for UTF-16,
    UTF-32, other encodings, and NUL bytes."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise TextError(f"is {encoding} text, expected UTF-8. {_REMEDY}")
    nul = data.find(0)
    if nul >= 0:
        encoding = _encoding_with_nuls(data)
        if encoding:
            raise TextError(f"is {encoding} text, expected UTF-8. {_REMEDY}")
        raise TextError(
            f"is not text: {_place(data, nul)} is a NUL byte (a damaged file, or UTF-16?). {_REMEDY}"
        )
    try:
        return without_marks(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TextError(
            f"is not UTF-8 text: {_place(data, error.start)} is {data[error.start]:#04x} (was it saved in "
            f"Latin-1, Windows-1252 or another encoding?). {_REMEDY}"
        ) from None


def _encoding_with_nuls(data: bytes) -> str:
    """The encoding, UTF-16 or UTF-32, that the positions of the NUL bytes in `data` indicate, else ""."""
    sample = data[:_SAMPLE_BYTES]
    zeros = [not any(sample[i::4]) for i in range(4)]
    if len(sample) >= 4 and not all(zeros) and (all(zeros[:2]) or all(zeros[2:])):
        return "UTF-32"
    even, odd = (sample[i::2].count(0) / max(1, len(sample) // 2) for i in range(2))
    return "UTF-16" if min(even, odd) == 0 and max(even, odd) > _MIN_NUL_SHARE else ""


def _place(data: bytes, offset: int) -> str:
    line_start = data.rfind(b"\n", 0, offset) + 1
    line = data.count(b"\n", 0, offset) + 1
    return f"byte {offset - line_start + 1} of line {line}"


def without_marks(text: str) -> str:
    """`text` without byte order marks at its beginning, as a shell's "$(cat FILE)" and programs that convert
    lines of a file to JSON leave them."""
    return text.lstrip(_BOM)


def text_lines(text: str) -> list[str]:
    """The lines of `text`, ended by LF, CRLF or CR only: other separators of str.splitlines (form feeds,
    U+2028) may be part of a prompt. Byte order marks at the beginning of lines are removed: concatenated
    files have them."""
    return [without_marks(line) for line in re.split(r"\r\n|\n|\r", text)]


def parse_json(text: str) -> Any:
    """The value in a JSON text. TextError for invalid JSON and duplicate keys."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise TextError(f"is not JSON: {error}.") from error


def read_text(path: Path, max_bytes: int) -> str:
    """The text in a file of at most `max_bytes`. TextError if it is unreadable, larger or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)  # pipes and devices report no size
    except OSError as error:
        raise TextError(f"cannot be read: {error.strerror}.") from error
    if len(data) > max_bytes:
        raise TextError(f"is larger than {max_bytes >> 20} MiB.")
    return decode_text(data)


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`. TextError as from `read_text`, and for other JSON
    values."""
    value = parse_json(read_text(path, max_bytes))
    if not isinstance(value, dict):
        raise TextError("is not a JSON object.")
    return value
