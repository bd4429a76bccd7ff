# SPDX-License-Identifier: Apache-2.0
"""The safety checker in `verify` and `bench`: rows for it, and seeded faults that are named."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.run import all_entries
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.verify.checks.bundle import exact_checks
from lamp_trt.benchmarks.verify.checks.check import Check
from lamp_trt.benchmarks.verify.checks.networks import NetworkProof, reference_place
from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
from lamp_trt.engine.bundle.manifest import SafetyEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import SAFETY_CHECKER


def options_of(sd: Path) -> VerifyOptions:
    return VerifyOptions(Checkpoints(sd), num_inference_steps=0, num_threads=1)


def rows_of(bundle: Bundle, sd: Path) -> list[Check]:
    """The exact checks, and the network's."""
    options = options_of(sd)
    exact = exact_checks(bundle, [SAFETY_CHECKER], options)
    return [*exact, *NetworkProof(bundle, SAFETY_CHECKER, reference_place(1), options).checks(exact)]


def test_a_sound_checker_passes_on_every_rung(safe_bundle: Path, safe_toy: Path, one_thread: None) -> None:
    rows = rows_of(Bundle.open(safe_bundle), safe_toy / "sd")
    assert [check for check in rows if not check.passed] == []
    titles = [(check.group, check.title) for check in rows]
    assert ("constants", "safety checker") in titles
    assert ("weights", SAFETY_CHECKER) in titles
    assert [title for group, title in titles if group == "networks"] == [
        "safety_checker concept_cosines",
        "safety_checker special_care_cosines",
    ]
    network = [check.measured["max_abs"] for check in rows if check.group == "networks"]
    assert max(network) < 1e-5


@pytest.mark.parametrize(
    "field", ["concept_thresholds", "special_care_thresholds", "image_mean", "image_std"]
)
def test_a_wrong_constant_is_named(field: str, safe_bundle: Path, safe_toy: Path) -> None:
    bundle = Bundle.open(safe_bundle)
    safety = bundle.manifest.safety
    assert safety is not None
    values = getattr(safety, field)
    changes: dict[str, Any] = {field: (*values[:-1], values[-1] + 0.01)}
    wrong: SafetyEntry = dataclasses.replace(safety, **changes)
    changed = dataclasses.replace(bundle.manifest, safety=wrong)
    checks = exact_checks(Bundle(bundle.path, changed, bundle.digest, {}), [], options_of(safe_toy / "sd"))
    failed = [check for check in checks if not check.passed]
    assert [check.title for check in failed] == ["safety checker"]
    assert field in failed[0].problem


def test_weights_of_another_checker_are_named(
    safe_bundle: Path, safe_toy: Path, tmp_path: Path, one_thread: None
) -> None:
    sd = Path(shutil.copytree(safe_toy / "sd", tmp_path / "sd"))
    path = sd / "safety_checker" / "model.safetensors"
    tensors = load_file(path)
    tensors["visual_projection.weight"] = np.ascontiguousarray(tensors["visual_projection.weight"][::-1])
    save_file(tensors, path)
    rows = rows_of(Bundle.open(safe_bundle), sd)
    failed = {(check.group, check.name): check.problem for check in rows if not check.passed}
    assert "visual_projection.weight" in failed["weights", SAFETY_CHECKER]
    assert any(group == "networks" for group, _ in failed)


def test_bench_measures_the_network_and_the_check_of_a_video(safe_bundle: Path, toy_bundle: Path) -> None:
    entries = all_entries(Subject(Bundle.open(safe_bundle), BenchOptions(num_threads=1)))
    names = [entry.name for entry in entries]
    assert "safety_checker" in names
    (checking,) = (entry for entry in entries if entry.name == "safety check of a video")
    with checking.setup() as run:
        assert run() is False
    without = all_entries(Subject(Bundle.open(toy_bundle), BenchOptions(num_threads=1)))
    assert not [entry.name for entry in without if "safety" in entry.name]
