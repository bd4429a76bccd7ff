# SPDX-License-Identifier: Apache-2.0
"""The choice of layer forms with a given timer instead of a GPU's, and its place in keys and sidecars."""

import dataclasses
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor.key import find_package, package_key
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.export import aotinductor
from lamp_trt.export.aotinductor import AotInductorOptions, build_packages
from lamp_trt.export.candidates import choice, registry
from lamp_trt.export.candidates.calls import Call, Operand, dominant, recorded_calls
from lamp_trt.export.candidates.choice import MOST_CALLS, Choice, Measured, choose, measure
from lamp_trt.export.candidates.packages import (
    CONSIDERED,
    FORMS,
    MEASURED,
    SETTINGS_CONSIDERED,
    SETTINGS_MEASURED,
    existing_key,
)
from lamp_trt.export.candidates.registry import CANDIDATES, DEFAULT, Candidate
from lamp_trt.export.candidates.settings import SettingsChoice
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.recipe import recipe_from_options
from tests.export.lamp.test_unet import inputs, random_unet
from tests.fixtures.toy import toy_options

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
GATE, TEMPORAL_CONV = registry.GATE, registry.TEMPORAL_CONV

NAMES = {candidate.load(): candidate.title for candidate in CANDIDATES if not candidate.requires}


def timer_of(
    seconds: Mapping[str, float], faults: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> choice.Timer:
    """A timer that takes `seconds` by title, 1 by default, and passes results through `faults`."""

    def timer(form: choice.Form, values: tuple[Any, ...]) -> tuple[float, Tensor]:
        title = NAMES[form]
        fault = (faults or {}).get(title, lambda result: result)
        return seconds.get(title, 1.0), fault(form(*values))

    return timer


@pytest.fixture(scope="module")
def calls() -> Counter[Call]:
    return recorded_calls(make_lean(random_unet()), inputs(2, 3, 8, 6))


FAST = {"gate=taps": 0.5, "temporal_conv=shifted": 0.7, "temporal_conv=two_sided": 0.6}


def test_the_fastest_form_of_each_slot_is_taken(calls: Counter[Call]) -> None:
    made = choose(calls, timer_of(FAST), CPU)
    assert made.text == "gate=taps,temporal_conv=two_sided"
    assert made.forms[registry.NORM_SILU] == "native"
    seconds = {f"{m.slot}={m.name}": m.seconds for m in made.measured}
    assert seconds.keys() == {c.title for slot in registry.SLOTS for c in registry.timed(slot)}
    counted = sum(dominant(calls, GATE, MOST_CALLS).values())
    assert seconds["gate=taps"] == pytest.approx(0.5 * counted)
    assert f"gate: convolution {1e3 * counted:.3f} ms, padded" in made.measurements


def test_of_equals_the_default_stays(calls: Counter[Call]) -> None:
    assert choose(calls, timer_of({}), CPU).text == DEFAULT
    assert choose({}, timer_of({}), CPU) == Choice()


def test_all_calls_count_together() -> None:
    """A form that is faster where a network calls rarely is not chosen."""

    def call(pixels: int) -> Call:
        shape = (1, 4, 3, pixels)
        operands = (shape, (4, 4, 3, 1), (4,))
        arguments = tuple(Operand(s, torch.empty(s).stride(), torch.float32) for s in operands)
        return Call(TEMPORAL_CONV, arguments)

    def timer(form: choice.Form, values: tuple[Any, ...]) -> tuple[float, Tensor]:
        pixels, title = values[0].shape[3], NAMES[form]
        taken = {"temporal_conv=shifted": {8: 5.0, 2: 1.0}, "temporal_conv=padded": {8: 4.0, 2: 3.0}}
        return taken.get(title, {8: 9.0, 2: 9.0})[pixels], form(*values)

    few, many = call(8), call(2)
    assert choose({few: 1, many: 1}, timer, CPU).text == "temporal_conv=shifted"
    assert choose({few: 3, many: 1}, timer, CPU).text == DEFAULT


def out_of_luck(_: Tensor) -> Tensor:
    raise RuntimeError("no kernel image\nat line 7")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (out_of_luck, "RuntimeError: no kernel image"),
        (lambda result: result * 1.001, "from the default in fp32, limit 2.0e-06"),
        (lambda result: result * torch.nan, "it is inf from the default"),
        (lambda result: result.half(), "it returns torch.float16"),
        (lambda result: result[:1, :1], "it returns torch.float32 "),
    ],
    ids=["error", "wrong", "not finite", "dtype", "shape"],
)
def test_a_form_that_fails_or_is_wrong_is_dropped_with_the_reason(
    fault: Callable[[Tensor], Tensor],
    reason: str,
    calls: Counter[Call],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "lamp_trt"):
        made = choose(calls, timer_of(FAST, {"gate=taps": fault}), CPU)
    assert made.text == "temporal_conv=two_sided"
    (dropped,) = [m for m in made.measured if m.seconds is None]
    assert (dropped.slot, dropped.name) == (GATE, "taps")
    assert reason in dropped.reason
    assert f"taps dropped ({dropped.reason})" in made.measurements
    assert f"layer form gate=taps is dropped: {dropped.reason}" in caplog.text


def test_without_a_sound_default_nothing_else_is_chosen(calls: Counter[Call]) -> None:
    made = choose(calls, timer_of(FAST, {"gate=convolution": out_of_luck}), CPU)
    assert made.text == "temporal_conv=two_sided"


def test_a_form_whose_language_is_missing_is_dropped(
    calls: Counter[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "lamp_trt.export.candidates.kernels.gate_op", raising=False)
    monkeypatch.delitem(sys.modules, "lamp_trt.export.candidates.kernels.gate", raising=False)
    kernel = registry.find(GATE, "triton")
    (row,) = measure(dominant(calls, GATE, 1), (kernel,), timer_of({}), CPU)
    assert row == Measured(GATE, "triton", None, row.reason)
    assert "triton" in row.reason


def test_only_the_largest_calls_are_timed(calls: Counter[Call]) -> None:
    for slot in registry.SLOTS:
        kept = dominant(calls, slot, 2)
        others = [n * call.nbytes for call, n in calls.items() if call.slot == slot and call not in kept]
        assert len(kept) == 2
        assert min(n * call.nbytes for call, n in kept.items()) >= max(others)


# --- packages -----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that compiles for a GPU without one. `timer`: of forms; `compiled`: names with the forms that
    the compiler saw; `faster`: settings that are faster on; `settings`: what the compiler saw of them."""
    state: dict[str, Any] = {
        "timer": timer_of(FAST),
        "compiled": [],
        "measured": 0,
        "faster": {"conv_as_mm"},
        "settings": [],
    }

    def compile_module(
        module: nn.Module, inputs: tuple[IOTensor, ...], path: Path, options: AotInductorOptions
    ) -> str:
        path.write_bytes(b"package")
        used = {slot: vars(m)[slot] for m in module.modules() for slot in registry.SLOTS if slot in vars(m)}
        state["compiled"].append((path.stem, sorted(NAMES[form] for form in used.values())))
        state["settings"].append(options.settings)
        return "flash"

    def measured(module: nn.Module, inputs: tuple[IOTensor, ...], options: AotInductorOptions) -> Choice:
        state["measured"] += 1
        arguments = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
        return aotinductor.measured_forms(module, arguments, CPU, state["timer"])

    def measured_settings(
        module: nn.Module, inputs: tuple[IOTensor, ...], options: AotInductorOptions
    ) -> SettingsChoice:
        values = {
            name: name in state["faster"] if given is None else given
            for name, given in options.requested.items()
        }
        rows = tuple(Measured(name, "on", 1e-3) for name, given in options.requested.items() if given is None)
        return SettingsChoice(values, rows)

    monkeypatch.setattr(aotinductor, "_measured_settings", measured_settings)
    monkeypatch.setattr(aotinductor, "compile_module", compile_module)
    monkeypatch.setattr(aotinductor, "_measured", measured)
    monkeypatch.setattr(aotinductor, "_device_name", lambda options: "sm_90 in a machine")
    monkeypatch.setenv("CXX", sys.executable)
    return state


OFF = {setting.name: False for setting in registry.SETTINGS}
"""Options that leave no setting to measuring."""


def unets_package(bundle: Bundle, toy: Path, folder: Path, **options: Any) -> compiled.CompiledEngine:
    recipe = recipe_from_options(toy_options(toy))
    (engine,) = build_packages(
        bundle, recipe, AotInductorOptions("cuda", **options), folder, networks=("lamp_unet",)
    )
    return engine


def test_the_measured_choice_is_in_the_key_the_sidecar_and_the_code(
    toy: Path, toy_bundle: Path, tmp_path: Path, gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(toy_bundle)
    engine = unets_package(bundle, toy, tmp_path)
    assert engine.key.flags[FORMS] == "gate=taps,temporal_conv=two_sided"
    assert gpu["compiled"] == [("lamp_unet", ["gate=taps", "temporal_conv=two_sided"])]
    sidecar = (tmp_path / f"{engine.key.stem}.json").read_text()
    assert '"forms": "gate=taps,temporal_conv=two_sided"' in sidecar
    assert engine.extra[CONSIDERED] == registry.considered()
    assert "gate: convolution" in str(engine.extra[MEASURED])
    settings = {"conv_as_mm": True, "cudnn_benchmark": False, "max_autotune": False}
    assert {name: engine.key.flags[name] for name in settings} == settings
    assert gpu["settings"] == [settings]
    assert engine.extra[SETTINGS_CONSIDERED] == "conv_as_mm cudnn_benchmark max_autotune"
    assert engine.extra[SETTINGS_MEASURED] == (
        "conv_as_mm: on 1.000 ms; cudnn_benchmark: on 1.000 ms; max_autotune: on 1.000 ms"
    )
    assert find_package(bundle, "lamp_unet", "sm_90 in a machine", tmp_path).key == engine.key
    # A second build neither measures nor compiles; one that considers another form does.
    assert unets_package(bundle, toy, tmp_path) == engine
    assert (len(gpu["compiled"]), gpu["measured"]) == (1, 1)
    fewer = tuple(c for c in CANDIDATES if c.title != "gate=taps")
    monkeypatch.setattr(registry, "CANDIDATES", fewer)
    assert unets_package(bundle, toy, tmp_path).key.flags[FORMS] == "temporal_conv=two_sided"
    assert (len(gpu["compiled"]), gpu["measured"]) == (2, 2)


def test_given_forms_are_compiled_without_measuring(
    toy: Path, toy_bundle: Path, tmp_path: Path, gpu: dict[str, Any]
) -> None:
    bundle = Bundle.open(toy_bundle)
    given = [
        unets_package(bundle, toy, tmp_path, forms=forms, **OFF)
        for forms in ("norm_silu=folded,gate=padded", "default", "gate=padded,norm_silu=folded")
    ]
    assert [engine.key.flags[FORMS] for engine in given] == [
        "gate=padded,norm_silu=folded",
        "default",
        "gate=padded,norm_silu=folded",
    ]
    assert given[0] == given[2]
    assert [forms for _, forms in gpu["compiled"]] == [["gate=padded", "norm_silu=folded"], []]
    assert gpu["measured"] == 0
    assert not given[0].extra.keys() & {CONSIDERED, MEASURED, SETTINGS_CONSIDERED, SETTINGS_MEASURED}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", [setting.name for setting in registry.SETTINGS])
def test_a_given_setting_is_not_measured_and_the_others_are(
    name: str, given: bool, toy: Path, toy_bundle: Path, tmp_path: Path, gpu: dict[str, Any]
) -> None:
    bundle = Bundle.open(toy_bundle)
    gpu["faster"] = {setting.name for setting in registry.SETTINGS}
    engine = unets_package(bundle, toy, tmp_path, forms="default", **{name: given})
    others = {setting.name: True for setting in registry.SETTINGS if setting.name != name}
    assert gpu["settings"] == [others | {name: given}]
    assert str(engine.extra[SETTINGS_CONSIDERED]).split() == list(others)
    # The package answers the same request, not one that measures all.
    assert unets_package(bundle, toy, tmp_path, forms="default", **{name: given}) == engine
    assert len(gpu["compiled"]) == 1
    measured = unets_package(bundle, toy, tmp_path, forms="default")
    assert len(gpu["compiled"]) == 2
    assert (measured.key == engine.key) == given
    assert unets_package(bundle, toy, tmp_path, forms="default") == measured
    assert len(gpu["compiled"]) == 2


def test_a_network_without_such_layers_has_its_default_forms(
    toy: Path, toy_bundle: Path, tmp_path: Path, gpu: dict[str, Any]
) -> None:
    request = BuildRequest(
        Bundle.open(toy_bundle),
        engine_dir=tmp_path,
        device="cuda",
        networks=("vae_decoder",),
        checkpoints=toy_options(toy),
        flags={"forms": "auto", "cudnn_benchmark": "on", "conv_as_mm": True, "max_autotune": "off"},
    )
    (engine,) = aotinductor.build_requested(request)
    assert engine.key.flags == {
        "attention": "auto",
        "conv_as_mm": True,
        "cudnn_benchmark": True,
        "forms": "default",
        "layout": "channels_last",
        "max_autotune": False,
    }


def test_on_a_cpu_nothing_is_measured_and_keys_are_as_they_were() -> None:
    assert AotInductorOptions().flags == {
        "attention": "auto",
        "layout": "contiguous_format",
        "max_autotune": False,
    }
    assert AotInductorOptions(forms="default").flags == AotInductorOptions().flags
    assert AotInductorOptions(forms="gate=taps").flags[FORMS] == "gate=taps"


def test_a_key_of_another_request_is_not_answered(toy_bundle: Path, tmp_path: Path) -> None:
    options = AotInductorOptions("cuda", **OFF)
    key = package_key(Bundle.open(toy_bundle), "lamp_unet", "sm_90", options.flags)
    chosen = dataclasses.replace(key, flags={**key.flags, FORMS: "gate=taps"})

    def store(key: compiled.CompiledKey, **extra: str) -> None:
        compiled.store(tmp_path, key, "pt2", extra, lambda file: None)

    assert existing_key(tmp_path, key) is None
    store(chosen)  # given, not measured
    store(dataclasses.replace(chosen, device="sm_80"), **{CONSIDERED: registry.considered()})
    assert existing_key(tmp_path, key) is None
    assert existing_key(tmp_path, chosen) == chosen
    store(chosen, **{CONSIDERED: registry.considered()})
    assert existing_key(tmp_path, key) == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forms": "gate=quick"}, "gate has no form 'quick'"),
        ({"device": "cuda", "forms": "door=taps"}, "there is no layer form 'door'"),
        ({"forms": "gate=triton"}, "gate=triton is a kernel for GPUs"),
        ({"cudnn_benchmark": True}, "cudnn_benchmark is for GPUs"),
        ({"conv_as_mm": True}, "conv_as_mm is for GPUs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AotInductorOptions(**options)


def test_a_setting_of_a_build_is_on_off_or_auto(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="max_autotune is 'yes'; choose auto, on, off"):
        aotinductor.build_requested(BuildRequest(Bundle.open(toy_bundle), flags={"max_autotune": "yes"}))


def test_a_kernel_without_its_language_is_an_error_that_names_it(
    toy: Path, toy_bundle: Path, tmp_path: Path, gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Candidate) -> Any:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(Candidate, "load", missing)
    with pytest.raises(
        EngineError, match="gate=triton needs triton, which is not installed: pip install triton"
    ):
        unets_package(Bundle.open(toy_bundle), toy, tmp_path, forms="gate=triton")
    assert not list(tmp_path.glob("*.pt2"))


def test_layers_that_do_not_run_are_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as too little memory beside another program."""

    def out_of_memory(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(aotinductor, "measured_forms", out_of_memory)
    with pytest.raises(EngineError, match=r"measured \(CUDA out of memory\); --forms default"):
        aotinductor._measured(nn.Identity(), (), AotInductorOptions())
    monkeypatch.setattr(aotinductor, "recorded_products", out_of_memory)
    with pytest.raises(
        EngineError, match=r"out of memory\); --forms default --conv-as-mm off .* measures nothing"
    ):
        aotinductor._measured_settings(nn.Identity(), (), AotInductorOptions())
