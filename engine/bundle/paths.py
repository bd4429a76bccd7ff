# SPDX-License-Identifier: Apache-2.0
"""Names in a bundle's folder: its own files, and validation of names from outside."""

import errno
import os
import re
import shlex
import stat
import sys
from pathlib import Path

from lamp_trt.engine.bundle.atomic_files import TEMPORARY_SUFFIX
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.files.links import linked_part

MANIFEST = "bundle.json"
PENDING = "bundle.json.pending"
"""The manifest of a commit in progress: it exists while staged files replace the old ones."""
JOURNAL = "build.journal"
LOCK = ".lock"
ENGINES = "engines"
STAGED_SUFFIX = ".lamp-new"

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_MOTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = (MANIFEST, PENDING, JOURNAL)


def possible_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return `path` if it can name a file on this system. InputError if it is not a str or os.PathLike, holds
    a null character or half of a surrogate pair, is too long, is or is inside a folder that this user may not
    enter, or is relative to a deleted working directory."""
    try:
        if not isinstance(os.fspath(path), str):
            raise TypeError
        os.path.abspath(path)
        if stat.S_ISDIR(os.stat(path).st_mode) and not os.access(path, os.X_OK):
            raise PermissionError
    except TypeError:
        raise InputError(f"{path!r:.150} is not a path: give a string or a pathlib.Path.") from None
    except ValueError:
        reason = name_remedy(path)
    except PermissionError:
        raise InputError(
            f"{os.fspath(path)!r:.300} cannot be reached: user {os.geteuid()} may not enter it or a folder "
            "above it. Change their permissions (chmod a+rX), or copy it to a folder that can be read."
        ) from None
    except OSError as error:
        if not os.path.isabs(path) and not _has_working_directory():
            raise InputError(
                f"{os.fspath(path)!r:.300} is relative to the working directory, which was deleted: change "
                "to another one, or give an absolute path."
            ) from None
        if error.errno != errno.ENAMETOOLONG:
            return path
        reason = "it is too long"
    else:
        return path
    raise InputError(f"{os.fspath(path)!r:.150} cannot name a file: {reason}.")


def name_remedy(path: str | os.PathLike[str]) -> str:
    """Remedy for a path that cannot be encoded: another locale if UTF-8 can encode it."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return "leave out what is escaped in it"
    if "\0" in os.fspath(path):
        return "leave out what is escaped in it"
    encoding = sys.getfilesystemencoding()
    return f"this locale's {encoding} lacks its letters, set PYTHONUTF8=1 or LC_ALL=C.UTF-8"


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def weights_path(component: str) -> str:
    return f"weights/{component}.safetensors"


def motion_path(motion: str) -> str:
    return f"motions/{motion}.safetensors"


def graph_path(network: str) -> str:
    return f"{network}.onnx"


def check_relative(relative: str) -> str:
    """Return `relative` if it can name a deterministic file of a bundle, like "weights/unet.safetensors".

    Segments of letters, digits and ._+- that start with a letter or digit: no absolute path, no "..", no
    hidden file, none of the bundle's own files and nothing in engines/. BundleError otherwise.
    """
    segments = relative.split("/")
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise BundleError(
            f"{relative!r:.150} cannot name a file of a bundle: expected a relative path of plain names "
            "(letters, digits and ._+-, none starting with a dot)"
        )
    if (
        relative in _RESERVED
        or segments[0] == ENGINES
        or relative.endswith((TEMPORARY_SUFFIX, STAGED_SUFFIX))
    ):
        raise BundleError(f"{relative!r} is reserved for the bundle's own use")
    return relative


def inside(root: Path, relative: str) -> Path:
    """root/relative, to read: it may be a link, or lie in a folder that is one. BundleError for a name that
    leads out by itself."""
    return root / check_relative(relative)


def own_path(root: Path, relative: str) -> Path:
    """root/relative, for writing. BundleError if it or a folder of the bundle above it is a link, whose
    target belongs to another store."""
    path = inside(root, relative)
    refuse_link(root, path)
    return path


def refuse_link(root: Path, path: Path) -> None:
    """BundleError if `path`, or a folder between it and the bundle `root`, is a link."""
    link = linked_part(path, root)
    if link is not None:
        raise BundleError(
            f"{link.relative_to(root)} in {root} is a link to {os.readlink(link)!r:.300}, and nothing is "
            f"written through links. {copy_remedy(root)}"
        )


def copy_remedy(root: Path) -> str:
    """Remedy for a bundle that cannot be changed in place."""
    return f"Change a copy of the bundle: cp -rL {shlex.quote(str(root))} COPY && chmod -R u+w COPY"


def validate_motion_name(name: str) -> str:
    """Return `name` if it can name a motion. InputError otherwise."""
    if not _MOTION_NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{name[:80]!r} cannot name a motion: expected 1 to 64 letters, digits and ._- "
            "that start with a letter or digit and hold no '..', like horse_run"
        )
    return name
