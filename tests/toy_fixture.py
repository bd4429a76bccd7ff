# SPDX-License-Identifier: Apache-2.0
"""The toy checkpoints, written once a session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sd, motions/horse_run and motions/rain, untrained: everything loads and runs."""
    from lamp_trt.export.toy import write_toy

    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder, training=0, sdxl=False)
    return folder
