# SPDX-License-Identifier: Apache-2.0
"""Commands that write nothing and take no lock if the bundle already has the result."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.journal import Journal
from lamp_trt.engine.bundle.manifest import Manifest, manifest_digest, read_manifest
from lamp_trt.engine.bundle.paths import JOURNAL, MANIFEST, PENDING, inside
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import InputError

Result = TypeVar("Result")


def write_if_needed(path: Path, work: Callable[[BundleWriter], Result], cache: DigestCache) -> Result:
    """The result of `work` on the bundle at `path`, with a writer only if it changes something.

    If there is nothing to do, this works on read-only bundles and on those whose files are links. When `work`
    has to write, it is called a second time, with a BundleWriter.
    """
    try:
        with _Unchanged(path, cache=cache) as bundle:
            return work(bundle)
    except _ChangeNeeded:
        pass
    with BundleWriter(path, cache=cache) as writer:
        return work(writer)


class _ChangeNeeded(Exception):
    """The bundle on disk differs from the result of the command."""


class _Unchanged(BundleWriter):
    """A BundleWriter without a lock that raises _ChangeNeeded instead of writing."""

    def __enter__(self) -> "_Unchanged":
        if any(os.path.lexists(self.path / name) for name in (PENDING, JOURNAL)):
            raise _ChangeNeeded
        if not os.path.lexists(self.path / MANIFEST):
            raise _ChangeNeeded
        self._journal = Journal(self.path)
        self.manifest, self.files = read_manifest(self.path)[0], {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: no lock is held."""

    def have(self, relative: str, key: str) -> bool:
        try:
            return super().have(relative, key)
        except InputError as error:  # another process is just replacing it
            raise _ChangeNeeded from error

    def create(self, relative: str, key: str) -> NoReturn:
        raise _ChangeNeeded

    def require_free(self, size: int) -> NoReturn:
        raise _ChangeNeeded

    def commit(self, manifest: Manifest) -> str:
        data = manifest.to_json()
        if not self._is_current(data):
            raise _ChangeNeeded
        return manifest_digest(data)

    def _unlink(self, paths: list[Path]) -> None:
        raise _ChangeNeeded

    def _final(self, relative: str) -> Path:
        return inside(self.path, relative)
