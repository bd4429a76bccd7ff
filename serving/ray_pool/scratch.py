# SPDX-License-Identifier: Apache-2.0
"""Folders of replicas for the files of running jobs. Those of killed replicas are removed by the next one."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from lamp_trt.engine.errors import EngineError


class Scratch:
    """A folder of this process in the temporary folder, locked while the process lives."""

    def __init__(self) -> None:
        root = _own_folder(Path(tempfile.gettempdir()) / f"lamp-trt-engines-{os.getuid()}")
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for old in root.iterdir():
                if old.is_dir() and _is_abandoned(old):
                    shutil.rmtree(old, ignore_errors=True)
            self.folder = Path(tempfile.mkdtemp(dir=root))
            self._lock = _lock_file(self.folder).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def clear(self) -> None:
        """Remove all files of jobs."""
        for path in self.folder.iterdir():
            if path != _lock_file(self.folder):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _own_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not path.is_dir() or path.is_symlink():
        raise EngineError(f"{path} is not a folder of this user alone; remove it, or set TMPDIR.")
    return path


def _lock_file(folder: Path) -> Path:
    return folder / ".lock"


def _is_abandoned(folder: Path) -> bool:
    with _lock_file(folder).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
