# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt bench` on a toy bundle, as a user types it."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.bench import run
from lamp_trt.benchmarks.bench.entries import ceilings, memory, networks, peers
from lamp_trt.benchmarks.bench.entries.memory import network_memory
from lamp_trt.benchmarks.bench.entries.networks import network_entries, seconds_on
from lamp_trt.benchmarks.bench.entries.peers import Peers
from lamp_trt.benchmarks.bench.harness import Entry
from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.result import BenchResult, read_result
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.report.html import page
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.benchmarks.verify.options import Checkpoints
from lamp_trt.cli import main
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.runtime.cuda import device as cuda_device
from lamp_trt.runtime.cuda.engines import EngineSet
from tests.doubles.host_device import HostDevice, HostDeviceEngine, host_engines
from tests.tolerances import COMPILED_REL_L2


@pytest.fixture(scope="module")
def report(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run with a small budget."""
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    arguments = ["bench", "-q", f"--bundle={toy_bundle}", "--budget=8s", "--num-threads=1", f"--out={out}"]
    assert main(arguments) == 0
    return out


def bench(bundle: Path, *arguments: object) -> int:
    plain = ["bench", "-q", f"--bundle={bundle}", "--num-threads=1"]
    return main([*plain, *map(str, arguments)])


def test_a_run_writes_all_three_formats(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == ["bench.html", "bench.json", "bench.md"]
    result = read_result(report / "bench.json")
    assert page(result) == (report / "bench.html").read_text()
    assert (report / "bench.md").read_text().startswith("# lamp-trt on ")


def test_every_network_is_measured_and_counted(report: Path, toy_bundle: Path) -> None:
    result = read_result(report / "bench.json")
    networks = {m.name: m for m in result.measurements if m.group == "networks"}
    missed = {line.partition(" ")[0] for line in result.not_measured}
    assert set(networks) | (missed & set(VIDEO_NETWORKS)) == set(VIDEO_NETWORKS)
    assert "lamp_unet" in networks
    manifest = Bundle.open(toy_bundle).manifest
    for name, m in networks.items():
        assert m.flops > 1e6
        assert m.bytes_moved > 1e5
        assert m.process_s is not None
        assert manifest.networks[name].precision == "fp32"


def test_the_result_names_machine_and_bundle_but_no_host(report: Path, toy_bundle: Path) -> None:
    text = (report / "bench.json").read_text()
    result = json.loads(text)
    assert result["subject"]["bundle"] == Bundle.open(toy_bundle).digest
    assert result["machine"]["cpu_threads"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["machine"]["date"])
    assert {"numpy", "onnxruntime"} <= set(result["machine"]["versions"])
    assert set(result["state_before"]) == set(result["state_after"])
    assert str(toy_bundle.parent) not in text.replace(" ", "")
    assert socket.gethostname() not in text


def test_what_was_not_measured_says_how_to(report: Path) -> None:
    missing = " ".join(read_result(report / "bench.json").not_measured)
    for remedy in ("--full", "--sweep", "--sd, --motion, --sdxl"):
        assert remedy in missing


def test_a_filter_leaves_what_it_names_and_the_ceilings(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(toy_bundle, "--filter=vae_enc", "--budget=6s", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {m["name"] for m in result["measurements"] if m["group"] != "ceilings"} == {"vae_encoder"}
    assert {m["name"] for m in result["measurements"]} >= {"matrix product", "memory copy"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--filter=nothing"], "matches nothing; there are: .*lamp_unet"),
        (["--budget=soon"], "expected a time"),
        (["--compare=missing.json"], "cannot be read"),
        (["--backend=mystery"], "choose 'auto', openvino, onnxruntime"),
        (["--device=tpu"], "device is 'tpu'"),
        (["--sweep"], "--motion NAME=DIR"),
        (["--steps=0"], "num_inference_steps"),
    ],
)
def test_bad_arguments_end_with_2_before_anything_is_measured(
    arguments: list[str], words: str, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(toy_bundle, *arguments) == 2
    assert re.search(words, capsys.readouterr().err)


class Slowed:
    """Entries that take fixed times, as `all_entries` gives them; one can be slowed."""

    def __init__(self) -> None:
        self.factor = 1.0

    def __call__(self, subject: Subject) -> list[Entry]:
        rng = np.random.default_rng(0)

        @contextmanager
        def setup() -> Iterator[Callable[[], float]]:
            yield lambda: float(self.factor * rng.normal(0.1, 0.002))

        return [Entry(name="step", group="stages", backend="test", setup=setup, clock="own")]


def test_the_exit_code_of_a_comparison_tells_slower(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entries = Slowed()
    monkeypatch.setattr(run, "all_entries", entries)
    old = tmp_path / "old"
    assert bench(toy_bundle, f"--out={old}") == 0
    assert bench(toy_bundle, f"--compare={old / 'bench.json'}") == 0
    entries.factor = 1.5
    new = tmp_path / "new"
    assert bench(toy_bundle, f"--compare={old / 'bench.json'}", f"--out={new}") == 1
    assert "1 of 1 rows are slower than before, most step (test)" in capsys.readouterr().err
    result = read_result(new / "bench.json")
    assert [change.verdict for change in result.changes] == ["slower"]
    assert len(result.history) == 1
    assert "<h2>Changes</h2>" in (new / "bench.html").read_text()


def test_a_network_on_a_device_is_timed_by_its_stream(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    subject = Subject(bundle, BenchOptions())
    device = HostDevice()

    def load(network: str) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(bundle, network, motion=subject.motion_of(network), num_threads=1)

    load_engine, _ = host_engines(device, load, motion="horse_run")
    engines = EngineSet(device, load_engine)
    bound = engines.add("vae_encoder")
    engines.share_scratch()
    inputs = subject.inputs("vae_encoder")
    measure = seconds_on(device, bound, inputs)
    assert measure() >= 0
    expected = load("vae_encoder").run(inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(device.download(bound.arrays[name]), values)


class Devices:
    """CudaDevice's double: every device that was opened, and the engines on it."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.opened: list[HostDevice] = []
        self.engines: list[HostDeviceEngine] = []

    def open(self, ordinal: int) -> HostDevice:
        device = HostDevice()
        device.ordinal = ordinal
        self.opened.append(device)
        return device

    def engine(self, backend: str, bundle: Bundle, network: str, **_: Any) -> HostDeviceEngine:
        if self.broken:
            raise EngineError("no engine")
        host = OnnxRuntimeEngine(bundle, network, num_threads=1)
        self.engines.append(HostDeviceEngine(host, self.opened[-1]))
        return self.engines[-1]


def time_network(subject: Subject) -> None:
    entry = next(e for e in network_entries(subject, lambda _: None) if e.name == "text_encoder")
    with entry.setup() as run_once:
        run_once()


def measure_scratch(subject: Subject) -> None:
    measured, problem = network_memory(subject, "text_encoder")
    if problem:
        raise EngineError(problem)
    assert measured["scratch"] == 4096


def time_copy(subject: Subject) -> None:
    entry = next(e for e in ceilings.ceiling_entries(subject.ordinal) if e.name == ceilings.COPY)
    with entry.setup() as measure:
        assert measure() >= 0


@pytest.mark.parametrize(
    ("work", "broken"),
    [
        (time_network, False),
        (time_network, True),
        (measure_scratch, False),
        (measure_scratch, True),
        (time_copy, False),
    ],
)
def test_devices_and_engines_are_closed(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Subject], None], broken: bool
) -> None:
    devices = Devices(broken)
    for module in (networks, cuda_device):
        monkeypatch.setattr(module, "CudaDevice", devices.open)
    for module in (networks, memory):
        monkeypatch.setattr(module, "device_engine", devices.engine)
    monkeypatch.setattr(ceilings, "GPU_COPY_BYTES", 1024)
    subject = Subject(Bundle.open(toy_bundle), BenchOptions(device="cuda", backend="tensorrt"))
    if broken:
        with pytest.raises(EngineError, match="no engine"):
            work(subject)
    else:
        work(subject)
    assert [device.closed for device in devices.opened] == [True]
    assert all(engine.closed for engine in devices.engines)


def test_an_engine_on_the_cpu_is_closed(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda self: closed.append(True))
    time_network(Subject(Bundle.open(toy_bundle), BenchOptions(backend="onnxruntime", num_threads=1)))
    assert closed == [True]


def options(toy: Path, **changes: Any) -> BenchOptions:
    checkpoints = Checkpoints(toy / "sd", {"horse_run": toy / "motions" / "horse_run"})
    return BenchOptions(checkpoints, num_threads=1, **changes)


def test_peers_are_the_official_formulation_and_our_lean_modules(toy: Path, toy_bundle: Path) -> None:
    subject = Subject(Bundle.open(toy_bundle), options(toy, full=True))
    measured = Peers(subject)
    entries = measured.entries()
    assert [entry.backend for entry in entries if entry.name == "lamp_unet"] == [
        "PyTorch eager",
        "PyTorch eager, lean",
        "torch.compile",
        "torch.compile, lean",
    ]
    reference = measured.reference("lamp_unet")
    assert reference is not None
    expected = reference[0]()
    for entry in entries:
        if entry.name == "lamp_unet" and "eager" in entry.backend:
            with entry.setup() as function:
                output = function()["noise_pred"]
            assert np.linalg.norm(output - expected["noise_pred"]) <= 1e-5 * np.linalg.norm(output)


def test_without_full_no_peer_is_loaded(toy: Path, toy_bundle: Path) -> None:
    measured = Peers(Subject(Bundle.open(toy_bundle), options(toy)))
    assert measured.entries() == []
    assert measured.reference("lamp_unet") is None


@pytest.fixture(scope="module")
def full(toy: Path, toy_bundle: Path) -> BenchResult:
    """With everything but torch.compile, whose compiler takes minutes."""
    asked = options(toy, budget_s=120, full=True, sweep=False, num_inference_steps=2, parity_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "COMPILED", ())
        return run.run_bench(toy_bundle, asked)


@pytest.mark.slow
def test_a_full_run_compares_with_pytorch(full: BenchResult) -> None:
    ours, eager = (full.row("lamp_unet", backend) for backend in ("onnxruntime", "PyTorch eager"))
    assert ours is not None
    assert ours.rel_l2 is not None
    assert ours.rel_l2 < 1e-5
    assert eager is not None
    assert eager.rel_l2 is not None
    assert eager.rel_l2 < 1e-5  # with one thread it sums in another order than the reference
    assert full.parity["passed"]
    assert list(full.sheets) == ["horse_run"]
    assert full.row("video of 2 steps, from an image") is not None
    assert full.row("build, nothing to do") is not None
    assert full.row("a video of 2 steps, 2 in flight") is not None
    assert "Against PyTorch" in page(full)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_torch_compile_computes_what_it_is_compared_with(toy: Path, toy_bundle: Path) -> None:
    entries = Peers(Subject(Bundle.open(toy_bundle), options(toy, full=True))).entries()
    (entry,) = [entry for entry in entries if entry.backend == "torch.compile, lean"]
    assert entry.reference is not None
    with entry.setup() as function:
        ours, expected = function()["noise_pred"], entry.reference()["noise_pred"]
    assert distance(ours, expected).rel_l2 <= COMPILED_REL_L2
