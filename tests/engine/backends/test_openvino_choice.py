# SPDX-License-Identifier: Apache-2.0
"""When OpenVINO is chosen, in which arithmetic, and what doctor says of it."""

import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lamp_trt.doctor import backends as doctor_backends
from lamp_trt.engine.backends import cpu
from lamp_trt.engine.backends.openvino import probe
from lamp_trt.engine.backends.probe import Gpu
from lamp_trt.engine.backends.registry import choose_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.load import Place
from lamp_trt.runtime.requests import Placement
from tests.fixtures.openvino import needs_bf16, needs_openvino

pytestmark = needs_openvino


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")


@pytest.mark.usefixtures("auto_as_shipped")
def test_auto_takes_it_on_the_cpu_and_onnx_runtime_where_it_is_missing(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(toy_bundle)
    caplog.set_level("INFO", "lamp_trt")
    assert Place.of(bundle, Placement()).backend == "openvino"
    assert "faster" not in caplog.text

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    for change in (version, lambda name: "2025.4.0"):
        with monkeypatch.context() as patch:
            patch.setattr(probe, "version", change)
            assert Place.of(bundle, Placement()).backend == "onnxruntime"
        assert "OpenVINO would be faster here: pip install 'lamp-trt[openvino]'" in caplog.text
        caplog.clear()
    assert Place.of(bundle, Placement(backend="onnxruntime")).backend == "onnxruntime"
    assert "faster" not in caplog.text
    assert Place.of(in_bf16(bundle), Placement()).backend == "openvino"


def in_bf16(bundle: Bundle) -> Bundle:
    networks = {name: replace(entry, precision="bf16") for name, entry in bundle.manifest.networks.items()}
    return replace(bundle, manifest=replace(bundle.manifest, networks=networks))


def test_a_precision_that_nothing_could_compute_in_is_refused(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    with pytest.raises(InputError, match="cpu_precision is 'fp16'"):
        Placement(cpu_precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cpu_precision is 'bf16', but on a GPU nothing uses it"):
        choose_backend(0, "auto", bundle, cpu_precision="bf16")
    assert choose_backend(None, "onnxruntime", bundle, cpu_precision="fp32") == "onnxruntime"
    with pytest.raises(InputError, match="'fp32', which OpenVINO has for this bundle; aotinductor"):
        choose_backend(None, "aotinductor", in_bf16(bundle), cpu_precision="fp32")


@needs_bf16
@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "aotinductor"])
def test_bf16_is_openvinos(backend: str, toy_bundle: Path) -> None:
    message = r"'bf16', which OpenVINO has .* Take --backend openvino \(pip install 'lamp-trt\[openvino\]'\)"
    with pytest.raises(InputError, match=message):
        choose_backend(None, backend, Bundle.open(toy_bundle), cpu_precision="bf16")


@pytest.mark.usefixtures("without_bf16")
def test_a_cpu_without_bf16_refuses_it_and_computes_a_bf16_bundle_in_fp32(
    toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(toy_bundle)
    reason = r"this CPU has neither of amx_bf16 and avx512_bf16 \(/proc/cpuinfo\)"
    with pytest.raises(InputError, match=rf"cpu_precision is 'bf16', but {reason}: leave it out"):
        choose_backend(None, "openvino", bundle, cpu_precision="bf16")
    assert cpu.arithmetic("unet", "bf16", None) == "fp32"
    Place.of(in_bf16(bundle), Placement(backend="openvino"))
    assert re.search(f"{reason}: weights in bf16 are widened to fp32", caplog.text)


def test_arithmetic_follows_the_bundle_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "why_no_bf16", lambda: "")
    every = ("fp32", "fp16", "bf16")
    chosen = [cpu.arithmetic("unet", precision, None) for precision in every]
    assert chosen == ["fp32", "fp32", "bf16"]
    for asked in ("fp32", "bf16"):
        assert {cpu.arithmetic("vae", precision, asked) for precision in every} == {asked}
        assert cpu.arithmetic("sdxl_vae", "fp32", asked) == "fp32"


def test_doctor_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {finding.name: finding for finding in doctor_backends.backend_findings(Gpu(problem="none"))}
    row = rows["OpenVINO, CPU"]
    assert row.status == "ok"
    assert re.fullmatch(r"openvino 20\d\d\.\d+\.\d+, fp32(; no bf16: .*| and bf16)", row.detail)
    monkeypatch.setattr(doctor_backends, "installed", lambda name: None)
    rows = {finding.name: finding for finding in doctor_backends.backend_findings(Gpu(problem="none"))}
    row = rows["OpenVINO, CPU"]
    assert (row.status, row.remedy) == ("note", "pip install 'lamp-trt[openvino]'")
    assert "faster" in row.detail
