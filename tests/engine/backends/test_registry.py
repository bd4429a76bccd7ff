# SPDX-License-Identifier: Apache-2.0
"""Backends are known by their records: a fourth one is a package and a line, and nobody compares names."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt import cli
from lamp_trt.benchmarks.bench import machine_facts, run
from lamp_trt.benchmarks.bench.entries.networks import network_entries
from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.proof.commands.session import on_gpus
from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
from lamp_trt.benchmarks.verify.run import verify_bundle
from lamp_trt.cli import main
from lamp_trt.doctor import backends as doctor_backends
from lamp_trt.doctor import packages
from lamp_trt.engine.backends import registry
from lamp_trt.engine.backends.backend import Backend, HostOptions
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.backends.probe import Gpu
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError
from tests.doubles import fourth_backend

ROOT = Path(__file__).parents[3]
BACKENDS = ROOT / "engine" / "backends"
PARTS = ("engine", "export", "runtime", "benchmarks", "src")

MODULE_NAMES = {
    "benchmarks/verify/run.py": "modules whose versions a report names",
    "benchmarks/proof/plan/command.py": "the default of a plan: installed everywhere that has torch",
    "benchmarks/proof/results/gather.py": "a part of the proofs",
    "src/lamp_trt/__init__.py": "whether the module was imported too early",
}
LABELS = {"benchmarks/studies/cpu_tables.py", "benchmarks/studies/unet_cpu.py"}
"""Of figures in committed result files."""


@pytest.fixture
def fourth(monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS, fourth_backend.BACKEND))
    monkeypatch.setattr(fourth_backend, "loaded", [])
    return fourth_backend.BACKEND


# --- a fourth backend -------------------------------------------------------------------------------------


def test_a_pipeline_loads_its_networks_on_it(fourth: Backend, toy_bundle: Path, tmp_path: Path) -> None:
    pipe = lamp_trt.load(toy_bundle, backend="fourth", motion="rain", num_threads=1, engine_dir=tmp_path)
    motions = {network: options.motion for network, options in fourth_backend.loaded}
    assert motions == {"text_encoder": None, "vae_encoder": None, "vae_decoder": None, "lamp_unet": "rain"}
    assert {(o.num_threads, o.engine_dir) for _, o in fourth_backend.loaded} == {(1, tmp_path)}
    picture = np.full((64, 64, 3), 128, np.uint8)
    assert np.isfinite(pipe("rain", first_frame=picture, num_inference_steps=1).latents).all()


def test_auto_takes_it_by_its_rank_where_it_is_ready(
    fourth: Backend, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(toy_bundle)
    assert registry.choose_backend(None, "auto", bundle, tmp_path) == registry.REFERENCE.name
    (tmp_path / "ready").touch()
    assert registry.choose_backend(None, "auto", bundle, tmp_path) == "fourth"
    networks = {name: replace(entry, precision="bf16") for name, entry in bundle.manifest.networks.items()}
    halved = replace(bundle, manifest=replace(bundle.manifest, networks=networks))
    refusal = "is in precision bf16, which Fourth does not run. Build it with --precision fp32"
    with pytest.raises(EngineError, match=refusal):
        registry.choose_backend(None, "fourth", halved, tmp_path)
    some = {**bundle.manifest.networks, "lamp_unet": networks["lamp_unet"]}
    assert fourth.runs(bundle)
    assert not fourth.runs(replace(bundle, manifest=replace(bundle.manifest, networks=some)))
    with pytest.raises(InputError, match="on a GPU choose 'auto', tensorrt, aotinductor, onnxruntime"):
        registry.choose_backend(0, "fourth", bundle, tmp_path)
    with pytest.raises(InputError, match="'pinned', which is TensorRT's; fourth has no such choice"):
        registry.check_residence("fourth", "pinned")


def test_the_command_line_offers_and_builds_for_it(
    fourth: Backend, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", f"--out={toy_bundle}", "--backend=fourth", f"--engine-dir={tmp_path}", "--json"]
    assert main([*command, "--only", "vae_decoder", "--fourth-effort=5"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert (engine["backend"], engine["network"], engine["flags"]) == (
        "fourth",
        "vae_decoder",
        {"fourth_effort": 5},
    )
    assert Path(engine["path"]).read_bytes() == b"code"
    for options in (["build"], ["generate"], ["image"], ["verify"], ["bench"]):
        assert main([*options, "--help"]) == 0
        assert "fourth" in capsys.readouterr().out, options


def test_a_module_that_it_lacks_names_its_extra(
    fourth: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def lack(args: Any) -> None:
        raise ModuleNotFoundError("No module named 'fourth'", name="fourth")

    monkeypatch.setattr(cli.inspect, "run", lack)
    assert main(["inspect", str(tmp_path)]) == 1
    assert "pip install 'lamp-trt[four]'" in capsys.readouterr().err


def test_doctor_shows_it(fourth: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_backends, "installed", {"fourth-runtime": "4.4.4"}.get)
    rows = {finding.name: finding for finding in doctor_backends.backend_findings(Gpu(problem="none"))}
    assert (rows["Fourth"].status, rows["Fourth"].detail) == ("ok", "fourth-runtime 4.4.4")
    monkeypatch.setattr(packages, "requires", lambda name: ['fourth-runtime>=4; extra == "four"'])
    monkeypatch.setattr(packages, "installed", lambda name: None)
    found = {finding.name: finding for finding in packages.package_findings()}
    assert found["fourth-runtime"].detail == "not installed; for the fourth backend"
    assert found["fourth-runtime"].remedy == "pip install 'lamp-trt[four]'"


def test_verify_compares_it_with_the_reference(fourth: Backend, toy_bundle: Path) -> None:
    options = VerifyOptions(Checkpoints(), num_inference_steps=0, num_threads=1, backend="fourth")
    report = verify_bundle(toy_bundle, options)
    assert report.failed == []
    assert report.subject["backend"] == "fourth"
    assert report.subject["versions"][fourth_backend.__name__] == "4.4.4"
    titles = {check.title for check in report.checks}
    assert any("vae_decoder" in t and "(fourth on the CPU against its graph in fp32)" in t for t in titles)


def test_verify_says_to_build_again_only_what_is_built(
    fourth: Backend, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxRuntimeEngine):
        def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value * np.float32(1.1) for name, value in super().run(arrays).items()}

    def load(bundle: Bundle, network: str, options: HostOptions) -> Any:
        return Wrong(bundle, network, motion=options.motion, num_threads=1)

    unbuilt = replace(fourth, build=None, host=replace(fourth.host, load=load))
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS[:-1], unbuilt))
    options = VerifyOptions(Checkpoints(), num_inference_steps=0, num_threads=1, backend="fourth")
    problems = [check.problem for check in verify_bundle(toy_bundle, options).failed]
    assert problems
    assert {problem.rpartition(": ")[2] for problem in problems} == {"try another version"}


@pytest.mark.parametrize("ready", [True, False])
def test_bench_leaves_out_what_is_not_ready(
    ready: bool, fourth: Backend, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is compiled beforehand, so that no file says whether it is installed."""
    host = replace(fourth.host, ready=lambda bundle, folder: ready)
    unbuilt = replace(fourth, build=None, host=host)
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS[:-1], unbuilt))
    measured = Subject(Bundle.open(toy_bundle), BenchOptions(engine_dir=tmp_path)).backends
    assert ("fourth" in measured) == ready


def test_bench_measures_it(
    fourth: Backend, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(toy_bundle)
    others = Subject(bundle, BenchOptions(engine_dir=tmp_path)).backends
    assert registry.REFERENCE.name in others
    assert "fourth" not in others
    (tmp_path / "vae_decoder-0.fourth").touch()
    assert Subject(bundle, BenchOptions(engine_dir=tmp_path)).backends == ("fourth", *others)
    subject = Subject(bundle, BenchOptions(backend="fourth", engine_dir=tmp_path))
    entries = {entry.name: entry for entry in network_entries(subject, lambda network: None)}
    assert {entry.backend for entry in entries.values()} == {"fourth"}
    with entries["text_encoder"].setup() as measure:
        assert measure().keys() == {"last_hidden_state"}
    measured = SimpleNamespace(row=lambda network, backend: backend == "fourth")
    assert run.operators(measured, subject, "text_encoder") == {"text_encoder": {"Everything": 0.25}}

    def version(name: str) -> str:
        if name != "fourth-runtime":
            raise PackageNotFoundError(name)
        return "4.4.4"

    monkeypatch.setattr(machine_facts, "version", version)
    assert machine_facts.machine_facts(None)["versions"] == {"fourth-runtime": "4.4.4"}


def test_proofs_run_on_every_backend_for_gpus(fourth: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ("tensorrt", "aotinductor", "onnxruntime")
    assert on_gpus() == gpus
    on_gpu = replace(fourth, device=fourth.host)
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS[:-1], on_gpu))
    assert on_gpus() == ("fourth", *gpus)


# --- the records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", registry.BACKENDS, ids=lambda backend: backend.name)
def test_each_backend_is_the_package_of_its_name(backend: Backend) -> None:
    assert import_module(f"lamp_trt.engine.backends.{backend.name}").BACKEND is backend
    assert backend.host or backend.device
    if backend.build:
        module, _, function = backend.build.function.partition(":")
        assert callable(getattr(import_module(module), function))


def test_names_and_ranks_are_unique() -> None:
    names = [backend.name for backend in registry.BACKENDS]
    assert len(set(names)) == len(names)
    for ordinal in (None, 0):
        runners = [runner for backend in registry.BACKENDS if (runner := backend.on(ordinal))]
        assert len({runner.rank for runner in runners}) == len(runners)
    extras = [extra.name for backend in registry.BACKENDS for extra in backend.extras]
    assert len(set(extras)) == len(extras)


def test_every_package_below_backends_is_registered_or_shared() -> None:
    found = {path.parent.name for path in BACKENDS.glob("*/__init__.py")}
    assert found == {backend.name for backend in registry.BACKENDS} | {"cuda"}


# --- nobody knows names -----------------------------------------------------------------------------------


def files() -> Iterator[tuple[str, ast.Module]]:
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent != ROOT):
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def test_no_module_outside_of_its_package_holds_a_backends_name() -> None:
    """As a string of its own: what could be compared, or look something up."""
    names = {backend.name for backend in registry.BACKENDS}
    seen, holding = 0, set()
    for path, tree in files():
        seen += 1
        own = path.split("/")[2] if path.startswith("engine/backends/") and path.count("/") > 2 else ""
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in names - {own}:
                holding.add(path)
    assert seen > 150
    assert holding == MODULE_NAMES.keys() | LABELS


def test_backends_import_neither_each_other_nor_the_registry() -> None:
    packages = {backend.name for backend in registry.BACKENDS}
    for path, tree in files():
        if not path.startswith("engine/backends/") or path.count("/") < 3:
            continue
        own = path.split("/")[2]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                for other in (packages - {own}) | {"registry"}:
                    place = f"lamp_trt.engine.backends.{other}"
                    assert not any(f"{name}.".startswith(f"{place}.") for name in names), (path, place)
