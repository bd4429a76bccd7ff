# SPDX-License-Identifier: Apache-2.0
"""Strict decoding of JSON into dataclasses. Errors name the field."""

import dataclasses
import functools
import json
import math
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from lamp_trt.engine.errors import BundleError


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. BundleError for anything else, duplicate keys, NaN, or absurd nesting."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"holds {type(value).__name__}, expected a JSON object")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for json.loads that raises ValueError for duplicate keys."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r:.100} occurs twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_hints = functools.cache(get_type_hints)


def decode(kind: Any, value: Any, where: str) -> Any:
    """`value`, parsed JSON, as `kind`: a dataclass, Mapping[str, X], tuple[X, ...], Literal, union or scalar.

    BundleError, naming the field, for an unknown key, a missing key or a wrong type; an int may stand for
    a float, a bool stands for neither.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        required = {f.name for f in dataclasses.fields(kind)}
        if unknown := value.keys() - required:
            raise BundleError(
                f"{_join(where, min(unknown))} is not a known key (known: {', '.join(sorted(required))})"
            )
        if missing := required - value.keys():
            raise BundleError(f"{_join(where, min(missing))} is missing")
        return kind(**{key: decode(hints[key], item, _join(where, key)) for key, item in value.items()})
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: decode(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return decode(option, value, where)
            except BundleError:
                continue
    elif origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif kind is float:
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            return value
    elif type(value) is kind:
        return value
    raise BundleError(f"{where or 'the document'} is {value!r:.100}, expected {_name(kind)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key:.100}" if where else f"{key:.100}"


def _name(kind: Any) -> str:
    if get_origin(kind) in (dict, Mapping, tuple):
        return "an array" if get_origin(kind) is tuple else "an object"
    if get_args(kind):
        return " or ".join(repr(a) if isinstance(a, str) else _name(a) for a in get_args(kind))
    names = {
        str: "a string",
        int: "an integer",
        float: "a number",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(kind, "an object")


def to_line(document: dict[str, Any]) -> bytes:
    """`document` as one line of JSON with sorted keys."""
    return (json.dumps(document, sort_keys=True, allow_nan=False) + "\n").encode("ascii")
