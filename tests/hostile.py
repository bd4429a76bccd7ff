# SPDX-License-Identifier: Apache-2.0
"""What the fuzzing tests share: hostile values, documents with one of them somewhere in, and the verdict."""

import json
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from torture_fixture import Tally, no_hang

from lamp_trt.engine.errors import LampError

MAX_MESSAGE = 3000
"""Characters of an error: an attacker's megabyte is not to come back in it."""

NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**4000]),
    st.floats(),
    st.booleans(),
)
TEXTS = st.one_of(
    st.sampled_from(["", "F32", "../x", "/etc/passwd", "a\x00b", "\ud800", "x" * 5000, "1", "nan"]),
    st.text(st.characters(exclude_categories=())),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def read_or_refused(read: Callable[[], object], tally: Tally) -> bool:
    """Whether `read` took its input. Anything but a value or a LampError of reasonable length fails."""
    start = time.monotonic()
    refusal = None
    with no_hang():
        try:
            read()
        except LampError as error:
            refusal = str(error)
    tally("hostile inputs tried", 1)
    tally("slowest hostile input, seconds", time.monotonic() - start)
    assert refusal is None or 10 < len(refusal) < MAX_MESSAGE
    return refusal is None


def mutated(document: Any, data: st.DataObject) -> Any:
    """`document` with one value somewhere in it taken away or exchanged."""
    if isinstance(document, dict) and document and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(document)))
        if data.draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in document.items() if name != key}
        return {**document, key: mutated(document[key], data)}
    if isinstance(document, list) and document and data.draw(st.integers(0, 5)):
        index = data.draw(st.integers(0, len(document) - 1))
        return [*document[:index], mutated(document[index], data), *document[index + 1 :]]
    return data.draw(VALUES)


def as_json(document: Any) -> bytes:
    """JSON with everything that Python's reader takes: NaN, lone surrogates, integers of 4000 digits."""
    return json.dumps(document).encode()
