# SPDX-License-Identifier: Apache-2.0
"""Steps that start from the other side's latents."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.verify.options import Checkpoints
from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic
from lamp_trt.benchmarks.verify.reference.traces import VideoJob, reference_trace
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_step_forced_from_its_own_start_ends_where_it_did(toy: Path) -> None:
    """Steps of either regime of AdaIN: the first two of three are early."""
    job = VideoJob(
        "a horse runs",
        None,
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
        latent_noise(0, Purpose.VIDEO, (1, 4, 2, 8, 8)),
        latent_noise(0, Purpose.POSTERIOR, (1, 4, 8, 8)),
        num_inference_steps=3,
        adain_switch_step=2,
    )
    checkpoints = Checkpoints(sd=toy / "sd", motions={"rain": toy / "motions" / "rain"})
    free = reference_trace(checkpoints, "rain", job, Arithmetic(torch.float32))
    forced = reference_trace(checkpoints, "rain", job, Arithmetic(torch.float32), free.steps).forced
    assert forced is not None
    assert len(forced) == len(free.steps) == 3
    for ours, expected in zip(forced, free.steps, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(free.steps[1] - free.steps[2]).max() > 1e-2
