# SPDX-License-Identifier: Apache-2.0
"""The proofs that wait for a GPU, made on the double of one at a small size: they hold, and can fail."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_device import HostDevice, HostDeviceEngine

from lamp_trt.benchmarks import gpu_proof, proof_peers
from lamp_trt.benchmarks.proof import Unavailable
from lamp_trt.benchmarks.proof_unet import UnetProof
from lamp_trt.benchmarks.proof_work import Work
from lamp_trt.benchmarks.random_checkpoints import write_component
from lamp_trt.engine.backend_onnxruntime import OnnxRuntimeEngine
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.weights import read_weight_file

CONFIG = {"block_out_channels": [8, 16], "attention_head_dim": 2, "cross_attention_dim": 16,
          "norm_num_groups": 4, "layers_per_block": 1,
          "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
          "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"]}  # fmt: skip


class WrongAfterASwitch(OnnxRuntimeEngine):
    """Keeps a trace of every motion that it showed."""

    def run(self, arrays: Any) -> Any:
        outputs = super().run(arrays)
        self.switches: int
        outputs["noise_pred"] = outputs["noise_pred"] + np.float32(getattr(self, "switches", 0))
        return outputs

    def set_motion(self, motion: str) -> None:
        self.switches = getattr(self, "switches", 0) + (self._motion not in (None, motion))
        super().set_motion(motion)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    def load(backend: str, work: Work, motion: str) -> HostDeviceEngine:
        if backend == "missing":
            raise Unavailable("missing is not installed")
        make = WrongAfterASwitch if backend == "residue" else OnnxRuntimeEngine
        engine = make(work.bundle, "lamp_unet", motion=motion, num_threads=1)
        assert isinstance(work.device, HostDevice)
        return HostDeviceEngine(engine, work.device, motion=motion)

    return Work(
        tmp_path_factory.mktemp("proof"),
        HostDevice(),
        load,
        torch_device="cpu",
        config=CONFIG,
        precision="fp32",
        height=64,
        width=64,
        num_frames=3,
        steps=3,
    )


def outcomes(work: Work, backend: str) -> dict[str, gpu_proof.Outcome]:
    made = {}
    for claim, function in UnetProof(work, backend).checks():
        try:
            made[claim] = gpu_proof.Outcome(claim, "passed", function(), 0.0)
        except Unavailable as reason:
            made[claim] = gpu_proof.Outcome(claim, "skipped", str(reason), 0.0)
        except AssertionError as error:
            made[claim] = gpu_proof.Outcome(claim, "failed", str(error), 0.0)
    return made


def test_a_sound_backend_passes_every_claim_about_the_unet(work: Work) -> None:
    made = outcomes(work, "sound")
    assert {outcome.result for outcome in made.values()} == {"passed"}, made
    assert len(made) == 6
    figures = work.results["sound"]
    assert figures["captured"]
    assert figures["scratch_bytes"] == 4096
    assert figures["rel_l2"] < 1e-5
    assert figures["step_ms"] == pytest.approx(0.25e3 / 3)  # the double's time between any two moments
    assert len(figures["switch_s"]) == 2


def test_a_backend_that_remembers_an_old_motion_is_caught(work: Work) -> None:
    made = outcomes(work, "residue")
    failed = [outcome for outcome in made.values() if outcome.result == "failed"]
    assert [outcome.claim.partition("shows")[1] for outcome in failed] == ["shows"]
    assert "the first motion's result changed" in failed[0].figures


def test_a_backend_that_is_not_there_is_named_and_skipped(work: Work) -> None:
    made = list(outcomes(work, "missing").values())
    assert {outcome.result for outcome in made} == {"skipped"}
    assert made[0].figures == "missing is not installed"


def test_peers_run_the_same_unet_in_both_formulations(work: Work) -> None:
    expected = work.reference(torch.float32)
    for formulation in proof_peers.FORMULATIONS:
        output = proof_peers.step(work, proof_peers.module(work, formulation))()
        np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_motions_of_random_checkpoints_share_what_motions_share(tmp_path: Path) -> None:
    shapes = {"conv_in.conv1d.weight": (4, 4, 3), "conv_in.conv2d.weight": (4, 4, 3, 3), "norm.weight": (4,)}
    folders = [write_component(tmp_path / str(n), {}, shapes, motion=n) for n in range(2)]
    first, second = (
        read_weight_file(folder / "diffusion_pytorch_model.safetensors").arrays() for folder in folders
    )
    equal = {name: np.array_equal(first[name], second[name]) for name in shapes}
    assert equal == {name: not is_motion_tensor(name) for name in shapes}
    assert abs(first["norm.weight"] - 1).max() < 0.5


def test_reports_are_written_after_each_check_and_the_budget_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some-proof-none.json"
    session = gpu_proof.Session(tmp_path, tmp_path, deadline=0.0)
    clock = iter([-1.0, 1.0, 2.0])
    monkeypatch.setattr(gpu_proof.time, "monotonic", lambda: next(clock))
    written: list[int] = []

    def count() -> str:
        written.append(len(json.loads(path.read_text())["checks"]) if path.exists() else 0)
        session.results["figure"] = 7
        return "fine"

    def make(claim: str, function: Any) -> gpu_proof.Outcome:
        return gpu_proof.Outcome(claim, "passed", function(), 0.1)

    monkeypatch.setattr(gpu_proof, "make", make)
    monkeypatch.setitem(gpu_proof.PARTS, "some", lambda _: iter([("a", count), ("b", count), ("c", count)]))
    results = [outcome.result for outcome in gpu_proof.run_part("some", session, {"gpu": "none"})]
    assert results == ["passed", "not run", "not run"]
    report = json.loads(path.read_text())
    assert [check["result"] for check in report["checks"]] == results
    assert report["figures"] == {"figure": 7}
    assert written == [0]


def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_proof.main(["unet"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_proof.main(["everything"])
    parts = ", ".join(gpu_proof.PARTS)
    assert f"there is no part 'everything'; choose of {parts}" in capsys.readouterr().err
