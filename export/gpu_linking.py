# SPDX-License-Identifier: Apache-2.0
"""The environment in which torch links a package for a GPU.

torch passes -lcuda. The driver brings libcuda.so.1 alone; libcuda.so is a stub of the CUDA toolkit, whose
folder torch names only where CUDA_HOME is set, and which a machine may not have.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRIVER = "libcuda.so.1"


@contextmanager
def linkable_driver(maps: Path = Path("/proc/self/maps")) -> Iterator[None]:
    """-lcuda finds the driver that this process has loaded; CUDA_HOME is set if torch finds a toolkit.

    Both hold for compilers started meanwhile. maps: what is loaded, as Linux lists it.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    changed = {} if CUDA_HOME is None else {"CUDA_HOME": os.environ.get("CUDA_HOME", CUDA_HOME)}
    with tempfile.TemporaryDirectory(prefix="lamp-trt-") as folder:
        driver = _loaded_driver(maps)
        if driver is not None:
            Path(folder, "libcuda.so").symlink_to(driver)
            given = os.environ.get("LIBRARY_PATH")
            changed["LIBRARY_PATH"] = os.pathsep.join([folder, *([given] if given else [])])
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _loaded_driver(maps: Path) -> Path | None:
    if not maps.is_file():
        return None
    paths = (line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "libcuda.so" in line)
    return next((path for path in map(Path, paths) if path.name.startswith("libcuda.so")), None)
