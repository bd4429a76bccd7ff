# SPDX-License-Identifier: Apache-2.0
"""Symbolic links: broken ones, and the Hugging Face cache, whose folders hold links.

That cache is models--ORG--NAME/{blobs/HASH, refs/main, snapshots/COMMIT/FILE → ../../blobs/HASH}; see
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Other stores (DVC, git-annex, Bazel, Nix)
link by absolute paths, through chains, or whole folders.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lamp_trt.engine.errors import InputError

_LISTED = 5
_REPOSITORIES = ("models--", "datasets--", "spaces--")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def linked_part(path: Path, root: Path | None = None) -> Path | None:
    """The topmost link among `path` and its parents, None if there is none. root: check only parts below
    it."""
    parts = [path, *path.parents]
    if root is not None:
        parts = [part for part in parts if part != root and part.is_relative_to(root)]
    return next((part for part in reversed(parts) if os.path.islink(part)), None)


def unreadable(path: Path) -> str | None:
    """Why `path` is not a regular file after following links, as a predicate ("is missing"); None if it is
    one."""
    if not _is_possible(path):
        return "has a name that no file can have"
    broken = next((p for p in (*reversed(path.parents), path) if _is_broken(p)), None)
    if broken is not None:
        through = "" if broken == path else f"leads through {broken.name}, which "
        if _errno(broken) == errno.ELOOP:
            return f"{through}is a link that leads in a circle"
        return (
            f"{through}is a link to {os.readlink(broken)!r:.300}, which does not exist or cannot be reached"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    link = f"a link to {os.path.realpath(path)!r:.300}, " if os.path.islink(path) else ""
    return f"is not a regular file but {link}{kind}"


def _is_possible(path: Path) -> bool:
    """Whether a file could have this name: no NUL, no half of a surrogate pair, not too long."""
    try:
        os.lstat(path)
    except ValueError:
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def _is_broken(path: Path) -> bool:
    return os.path.islink(path) and _errno(path) is not None


def _errno(path: Path) -> int | None:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno
    return None


def utf8_path(path: str | os.PathLike[str]) -> str:
    """`path` as UTF-8 text for native libraries. InputError if its bytes are not UTF-8."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(
            f"{os.fspath(path)!r:.300} is not named in UTF-8, which the library that reads it needs: "
            "rename it, or copy it to another folder."
        ) from None


def meant_folder(folder: Path, markers: tuple[str, ...]) -> str:
    """A sentence that names the folders in `folder` that have one of the files `markers`, "" if there are
    none.

    For a folder of a Hugging Face cache these are its snapshots, that of refs/main first.
    """
    snapshots = list(_snapshots(folder))
    if snapshots:
        found = [place for snapshot in snapshots for place in _with_marker(snapshot, markers)]
        what = f"{folder} is a folder of a Hugging Face cache"
        if not found:
            return f"{what}, and no snapshot in it has {' or '.join(markers)}."
    else:
        found = [place for place in _folders(folder) if _has(place, markers)]
        what = f"{folder} is the folder above"
    if not found:
        return ""
    listed = ", or ".join(map(str, found[:_LISTED])) + ", …" * (len(found) > _LISTED)
    return f"{what}: give {listed}."


def is_cache_folder(folder: Path) -> bool:
    """Whether `folder` is, is part of, or holds a repository of a Hugging Face cache."""
    return next(_snapshots(folder), None) is not None


def _snapshots(folder: Path) -> Iterator[Path]:
    """The snapshots of the cached repositories that `folder` is, is part of, or holds."""
    if os.path.isdir(folder / "snapshots"):
        repositories = [folder]
    elif folder.name in ("snapshots", "blobs", "refs") and os.path.isdir(folder.parent / "snapshots"):
        repositories = [folder.parent]
    else:
        hubs = [folder, folder / "hub"]
        repositories = [p for hub in hubs for p in _folders(hub) if p.name.startswith(_REPOSITORIES)]
    for repository in repositories:
        try:
            main = (repository / "refs" / "main").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            main = ""
        yield from sorted(_folders(repository / "snapshots"), key=lambda path: (path.name != main, path.name))


def _with_marker(snapshot: Path, markers: tuple[str, ...]) -> list[Path]:
    if _has(snapshot, markers):
        return [snapshot]
    return [place for place in _folders(snapshot) if _has(place, markers)]


def _has(folder: Path, markers: tuple[str, ...]) -> bool:
    return any(os.path.lexists(folder / marker) for marker in markers)


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder`; none if it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if os.path.isdir(path))
    except OSError:
        return []
