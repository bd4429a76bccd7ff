# SPDX-License-Identifier: Apache-2.0
"""The toy checkpoints and a bundle of them, made once a session."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lamp_trt.export.recipe import BuildOptions

TOY_SIZE = {"height": 64, "width": 64, "num_frames": 4}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sd, motions/horse_run and motions/rain, untrained: everything loads and runs."""
    from lamp_trt.export.toy.checkpoints import write_toy

    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder, training=0, sdxl=False)
    return folder


@pytest.fixture(scope="session")
def toy_bundle(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 bundle of the toy checkpoints at TOY_SIZE; horse_run is the default motion.

    Shared by all tests: those that change a bundle copy it first.
    """
    from lamp_trt.export.build import build_bundle

    out = tmp_path_factory.mktemp("bundle") / "toy"
    build_bundle(out, toy_options(toy))
    return out


def toy_options(toy: Path, **changes: Any) -> "BuildOptions":
    """The options of `toy_bundle`, with changes."""
    from lamp_trt.export.recipe import BuildOptions

    motions = {name: toy / "motions" / name for name in ("horse_run", "rain")}
    return BuildOptions(**{"sd": toy / "sd", "motions": motions, **TOY_SIZE, **changes})
