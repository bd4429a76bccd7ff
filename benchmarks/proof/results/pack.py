# SPDX-License-Identifier: Apache-2.0
"""Files that come back from a lent machine: few, and none too large."""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LOG_TAIL = 200_000
"""Bytes of the end of each log."""


@dataclass(frozen=True)
class Limits:
    files: int
    file_bytes: int


def put(out: Path, texts: dict[str, str], logs: Path, engines: Path, limits: Limits) -> list[str]:
    """Write the texts, then the logs, then the engines in pieces, as far as the limits go; what was left
    out, as sentences. What an earlier report put there and this one does not is removed."""
    out.mkdir(parents=True, exist_ok=True)
    contents = {name: text.encode() for name, text in texts.items()}
    contents["logs.tar.gz"] = _archive(
        ((path.name, path.read_bytes()[-LOG_TAIL:]) for path in _files(logs)), "w:gz"
    )
    left_out = []
    kept: dict[str, bytes] = {}
    for name, content in contents.items():
        if len(kept) == limits.files:
            left_out.append(f"{name}: there is room for {limits.files} files")
        elif len(content) > limits.file_bytes:
            left_out.append(f"{name}: {len(content)} bytes, at most {limits.file_bytes} come back")
        else:
            kept[name] = content
    pieces = _pieces(engines, limits.file_bytes)
    if len(kept) + len(pieces) <= limits.files:
        kept |= pieces
    else:
        left_out.append(f"engines: {len(pieces)} pieces, there is room for {limits.files - len(kept)}")
    for old in out.iterdir():
        if old.is_file() and old.name not in kept:
            old.unlink()
    for name, content in kept.items():
        part = out / f"{name}.part"
        part.write_bytes(content)
        part.replace(out / name)
    return left_out


def _pieces(engines: Path, size: int) -> dict[str, bytes]:
    """engines.tar.0, engines.tar.1, …: `cat engines.tar.* | tar x` puts them together. Only whole engines:
    those with a sidecar."""
    files = [
        path for path in _files(engines) if path.suffix == ".json" or path.with_suffix(".json").is_file()
    ]
    if not files:
        return {}
    data = _archive(((path.name, path.read_bytes()) for path in files), "w")
    return {f"engines.tar.{start // size}": data[start : start + size] for start in range(0, len(data), size)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []


def _archive(files: Iterable[tuple[str, bytes]], mode: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()
