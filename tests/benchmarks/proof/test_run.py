# SPDX-License-Identifier: Apache-2.0
"""The proofs that wait for a GPU, made on the double of one at a small size: they hold, and can fail."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.proof import peers as proof_peers
from lamp_trt.benchmarks.proof import pipeline as proof_pipeline
from lamp_trt.benchmarks.proof.candidates import CandidatesProof
from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.commands import run as proof_run
from lamp_trt.benchmarks.proof.commands.outcomes import Outcome
from lamp_trt.benchmarks.proof.commands.parts import PARTS
from lamp_trt.benchmarks.proof.commands.session import Session, on_gpus
from lamp_trt.benchmarks.proof.hoists import HoistsProof, Row
from lamp_trt.benchmarks.proof.random_checkpoints import write_component
from lamp_trt.benchmarks.proof.unet import UnetProof
from lamp_trt.benchmarks.proof.work import LAMP, SDXL, Work
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export import recipe
from lamp_trt.export.candidates.choice import Timer
from lamp_trt.export.candidates.registry import CANDIDATES, SETTINGS
from lamp_trt.export.candidates.settings import Values
from tests.doubles.proof import SUBJECTS, ClockedDevice, toy_work
from tests.tolerances import PROOF_REL_L2

pytestmark = pytest.mark.usefixtures("one_thread")

Outcomes = dict[str, Outcome]

TOGETHER = {"lamp_unet": "text,time,prefix", "sdxl_unet": "text,time"}
"""All that can be hoisted out of a UNet."""


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    folder = tmp_path_factory.mktemp("proof")
    return {network: toy_work(folder, subject) for network, subject in SUBJECTS.items()}


@pytest.fixture(params=SUBJECTS)
def work(works: dict[str, Work], request: pytest.FixtureRequest) -> Work:
    """Either UNet."""
    return works[request.param]


@pytest.fixture
def lamp(works: dict[str, Work]) -> Work:
    return works["lamp_unet"]


def outcomes(checks: Iterable[Check]) -> Outcomes:
    made = {}
    for claim, function in checks:
        try:
            made[claim] = Outcome(claim, "passed", function(), 0.0)
        except Unavailable as reason:
            made[claim] = Outcome(claim, "skipped", str(reason), 0.0)
        except AssertionError as error:
            made[claim] = Outcome(claim, "failed", str(error), 0.0)
    return made


def failed(made: Outcomes) -> list[Outcome]:
    return [outcome for outcome in made.values() if outcome.result == "failed"]


def hoisted(work: Work, backend: str, *, each: bool = False) -> tuple[Outcomes, list[Row]]:
    """Of the checks of hoists: of all together and, for every form is an export, of `each` only if wanted.
    Whatever they find, every engine is let go."""
    proof = HoistsProof(work, backend, [])
    if not each:
        proof.forms = proof.forms[:1]
    made = outcomes(proof.checks())
    assert isinstance(work.device, ClockedDevice)
    assert all(engine.closed for engine in work.device.engines)
    return made, proof.table


def test_a_sound_backend_passes_every_claim_about_a_unet(work: Work) -> None:
    made = outcomes(UnetProof(work, "sound").checks())
    assert {outcome.result for outcome in made.values()} == {"passed"}, made
    assert len(made) == (6 if work.subject is LAMP else 5)
    figures = work.results["sound"]
    assert figures["captured"]
    assert figures["scratch_bytes"] == 4096
    assert figures["rel_l2"] < PROOF_REL_L2
    assert figures["step_ms"] == pytest.approx(10)  # the double's clock
    assert figures["loop_ms"] == pytest.approx(30)
    assert figures["once_ms"] == pytest.approx(0)
    assert ("switch_s" in figures) == (work.subject is LAMP)


@pytest.mark.parametrize(
    ("backend", "claim", "why"),
    [
        ("wrong", "near to fp32", "limit"),
        ("wrong when replayed", "replayed from a capture", "not equal"),
        ("residue", "shows another motion", "the first motion's result changed"),
    ],
)
def test_a_faulty_backend_is_caught(backend: str, claim: str, why: str, lamp: Work) -> None:
    made = failed(outcomes(UnetProof(lamp, backend).checks()))
    assert [claim in outcome.claim for outcome in made] == [True], made
    assert why in made[0].figures


def test_a_backend_that_is_not_there_is_named_and_skipped(work: Work) -> None:
    for checks in (UnetProof(work, "missing").checks(), HoistsProof(work, "missing", []).checks()):
        made = list(outcomes(checks).values())
        assert {outcome.result for outcome in made} == {"skipped"}
        assert made[0].figures == "missing is not installed"
        assert {outcome.figures for outcome in made[1:]} == {"it did not load"}


def test_without_diffusers_sdxls_unet_is_skipped_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    work, why = toy_work(tmp_path, SDXL), "SDXL's UNet is exported from a module of diffusers"
    for checks in (UnetProof(work, "sound").checks(), HoistsProof(work, "sound", []).checks()):
        made = list(outcomes(checks).values())
        assert {outcome.result for outcome in made} == {"skipped"}
        assert made[0].figures.startswith(why)
    made = list(outcomes(proof_peers.checks(work)).values())
    assert all(outcome.result == "skipped" and outcome.figures.startswith(why) for outcome in made)


def test_without_diffusers_the_lamp_unets_graph_has_a_key(
    lamp: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lamp.bundle

    def installed(name: str) -> str:
        if name == "diffusers":
            raise PackageNotFoundError(name)
        return version(name)

    made = recipe.recipe_from_options(lamp.options)
    key = made.graph_key("lamp_unet")
    monkeypatch.setattr(recipe, "version", installed)
    assert len(made.graph_key("lamp_unet")) == 64
    assert made.graph_key("lamp_unet") != key


def test_peers_run_the_same_unet_in_every_formulation(work: Work) -> None:
    assert work.bundle
    expected = work.reference(torch.float32)
    formulations = proof_peers.formulations(work)
    assert formulations == (("official", "lean") if work.subject is LAMP else ("official",))
    for formulation in formulations:
        output = proof_peers.step(work, proof_peers.module(work, formulation))()
        np.testing.assert_allclose(
            output.numpy(), expected, rtol=0, atol=PROOF_REL_L2 * np.abs(expected).max()
        )


def check_hoists(work: Work, *, each: bool = False) -> list[Row]:
    """That a sound backend's hoists pass; the table."""
    made, table = hoisted(work, "sound", each=each)
    assert {outcome.result for outcome in made.values()} == {"passed"}, made
    plain, *others = table
    assert plain["form"] == "plain"
    assert (plain["step_ms"], plain["loop_ms"]) == pytest.approx((10, 30))
    assert others[0]["form"] == TOGETHER[work.subject.network]
    for row in others:
        assert (row["network"], row["backend"]) == (work.subject.network, "sound")
        assert row["captured"]
        assert row["rel_l2_to_plain"] < PROOF_REL_L2
        assert row["latents_rel_l2_to_plain"] < PROOF_REL_L2
        assert row["plain_loop_ms"] == pytest.approx(30)
        assert row["step_ms"] == pytest.approx(9.8)
        assert row["loop_ratio"] == pytest.approx(row["loop_ms"] / 30)
    return table


def check_once(work: Work, together: Row) -> None:
    """What is done once a prompt: text, and SDXL's table of times, for it depends on the text."""
    table_ms = 0.1 * work.steps
    once_ms = 0.5 if work.subject is LAMP else 0.5 + table_ms
    assert together["once_ms"] == pytest.approx(once_ms)
    assert together["first_once_ms"] == pytest.approx(0.5 + table_ms)
    assert together["loop_ms"] == pytest.approx(once_ms + 3 * 9.8)


def test_sound_hoists_cost_nothing_and_give_the_plain_forms_result(lamp: Work) -> None:
    check_once(lamp, check_hoists(lamp)[1])
    forms = (lamp, lamp.hoisting(("text", "time", "prefix")))
    plain, together = (form.bundle.path / "weights" / "unet.safetensors" for form in forms)
    assert plain.samefile(together)


@pytest.mark.slow
def test_each_hoist_alone_holds_too_and_sdxls(work: Work) -> None:
    table = check_hoists(work, each=True)
    check_once(work, table[1])
    hoists = TOGETHER[work.subject.network]
    assert [row["form"] for row in table] == ["plain", hoists, *hoists.split(",")]


@pytest.mark.parametrize(
    ("backend", "claim", "why"),
    [
        ("wrong when hoisted", "gives the plain form's result", "limit"),
        ("slow when hoisted", "a hoist costs nothing", "the loop takes 1.0367 of the plain form's time"),
        ("dear text", "a hoist costs nothing", "a step 0.9800"),
    ],
)
def test_a_hoist_that_is_wrong_or_slow_is_caught(backend: str, claim: str, why: str, lamp: Work) -> None:
    made = failed(hoisted(lamp, backend)[0])
    assert [claim in outcome.claim for outcome in made] == [True], made
    assert why in made[0].figures


def test_a_checkpoint_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    def cut_off(folder: Path, config: Any) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise ModuleNotFoundError(name="onnxscript")

    work = toy_work(tmp_path, dataclasses.replace(LAMP, checkpoints={"first": cut_off}))
    for _ in range(2):
        with pytest.raises(Unavailable, match="onnxscript is not installed"):
            assert work.bundle
    assert not (tmp_path / "first").exists()


def test_parts_take_either_unet_to_every_backend(works: dict[str, Work], tmp_path: Path) -> None:
    session = Session(tmp_path, tmp_path, deadline=0.0, _works=dict(works))
    claims = {part: [claim for claim, _ in PARTS[part](session)] for part in ("sdxl", "hoists")}
    for backend in on_gpus():
        assert f"{backend}: SDXL's UNet loads" in claims["sdxl"]
        for title, form in (("the LAMP UNet", "prefix"), ("SDXL's UNet", "time")):
            assert (
                f"a hoist costs nothing, at most 1% of a loop: {backend}: {title} with {form} hoisted"
                in claims["hoists"]
            )
    assert sum(claim.startswith("PyTorch") for claim in claims["sdxl"]) == len(proof_peers.MODES)
    assert session.results == {"hoists": []}
    one = dataclasses.replace(session, backends=("onnxruntime",))
    assert {claim.partition(":")[0] for claim, _ in PARTS["unet"](one)} == {"onnxruntime"}


def test_every_layer_form_is_timed_on_the_unets_own_calls(lamp: Work) -> None:
    """A wrong one fails, and so is not named; one that needs what is missing is skipped."""
    forms = {form.load(): form.title for form in CANDIDATES if not form.requires}
    layouts: set[tuple[str, bool]] = set()

    def timer(form: Any, values: tuple[Any, ...]) -> tuple[float, torch.Tensor]:
        title, result = forms.get(form, "a product"), form(*values)
        layouts.add((title, values[0].is_contiguous()))
        wrong = 1.01 if title == "norm_silu=by_channel" else 1.0
        return {"gate=taps": 1.0, "norm_silu=by_channel": 0.1}.get(title, 2.0), result * wrong

    figures: dict[str, Any] = {}
    made = outcomes(CandidatesProof(lamp, figures, lambda _: timer).checks())
    assert [claim.split()[2] for claim in made if claim.startswith("layer")] == [f.title for f in CANDIDATES]
    (wrong,) = [outcome for outcome in failed(made) if "triton" not in outcome.claim]
    assert "norm_silu=by_channel" in wrong.claim
    assert "from the default in fp32" in wrong.figures
    assert figures["forms"] == "gate=taps"
    assert made["the fastest forms are known"].figures == "--forms gate=taps"
    timed = figures["candidates"]
    assert timed["gate=convolution"] == 2 * timed["gate=taps"] > 0
    assert {timed[setting.title(on)] > 0 for setting in SETTINGS for on in (False, True)} == {True}
    assert timed.keys() >= {title for title in forms.values() if title != "norm_silu=by_channel"}
    assert ("gate=convolution", False) in layouts  # channels last, as packages have it
    if importlib.util.find_spec("triton") is None:
        assert made["layer form gate=triton gives the default's result, and is timed"].result == "skipped"


def test_every_setting_is_timed_off_and_on(lamp: Work) -> None:
    """One after the other, each with those before it that were faster; a wrong one fails."""

    def timer_of(values: Values) -> Timer:
        def timer(form: Any, arguments: tuple[Any, ...]) -> tuple[float, torch.Tensor]:
            wrong = 1.01 if values.get("max_autotune") else 1.0
            return 0.5 if values.get("conv_as_mm") else 1.0, form(*arguments) * wrong

        return timer

    figures: dict[str, Any] = {}
    made = outcomes(CandidatesProof(lamp, figures, timer_of).checks())
    rows = {claim.split()[1]: row for claim, row in made.items() if claim.startswith("setting")}
    assert {name: row.result for name, row in rows.items()} == {
        "conv_as_mm": "passed",
        "cudnn_benchmark": "passed",
        "max_autotune": "failed",
    }
    assert "from the default in fp32" in rows["max_autotune"].figures
    timed = figures["candidates"]
    assert timed["conv_as_mm=off"] == 2 * timed["conv_as_mm=on"] > 0
    assert timed["cudnn_benchmark=off"] == timed["cudnn_benchmark=on"]
    assert "max_autotune=on" not in timed
    assert figures["settings"] == {"conv_as_mm": True, "cudnn_benchmark": False}


def test_motions_of_random_checkpoints_share_what_motions_share(tmp_path: Path) -> None:
    shapes = {"conv_in.conv1d.weight": (4, 4, 3), "conv_in.conv2d.weight": (4, 4, 3, 3), "norm.weight": (4,)}
    folders = [write_component(tmp_path / str(n), {}, shapes, motion=n) for n in range(2)]
    first, second = (
        read_weight_file(folder / "diffusion_pytorch_model.safetensors").arrays() for folder in folders
    )
    equal = {name: np.array_equal(first[name], second[name]) for name in shapes}
    assert equal == {name: not is_motion_tensor(name) for name in shapes}
    assert abs(first["norm.weight"] - 1).max() < 0.5


def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert proof_run.main(["unet"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        proof_run.main(["everything"])
    parts = ", ".join(PARTS)
    assert f"there is no part 'everything'; choose of {parts}" in capsys.readouterr().err


def test_the_pipelines_bundle_is_reported_by_the_size_of_its_files(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").symlink_to(toy_bundle)
    loaded = SimpleNamespace(bundle=Bundle.open(toy_bundle))
    monkeypatch.setattr(proof_pipeline.lamp_trt, "load", lambda *_, **__: loaded)
    files = loaded.bundle.manifest.files
    on_disk = sum((toy_bundle / name).stat().st_size for name in files)
    assert on_disk > 1_000_000
    monkeypatch.setattr(proof_pipeline, "compile_networks", lambda *_: None)
    figures = proof_pipeline.PipelineProof(tmp_path, "tensorrt").load()
    assert figures == f"{on_disk / 1e9:.2f} GB in {len(files)} files"
