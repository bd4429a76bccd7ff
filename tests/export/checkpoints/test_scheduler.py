# SPDX-License-Identifier: Apache-2.0
"""Which schedulers a build takes: published ones, every class and field of diffusers, and edited files."""

import inspect
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.strict_json import to_line
from lamp_trt.export.checkpoints.files import read_json
from lamp_trt.export.checkpoints.scheduler import (
    CLASSES,
    check_scheduler,
    known_fields,
    scheduler_settings,
)
from lamp_trt.export.published import SDXL_SCHEDULER
from lamp_trt.export.recipe import BuildOptions, recipe_from_options
from lamp_trt.export.toy.published import SCHEDULER_CONFIG as SD_SCHEDULER
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from tests.fixtures.toy import toy_options

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ROOT = Path("/checkpoint")

# As on the Hugging Face hub, without _diffusers_version.
ANIMAGINE = {
    **SD_BETAS,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
TURBO = {**ANIMAGINE, "timestep_spacing": "trailing", "sigma_min": None}
LIGHTNING = {**SDXL_SCHEDULER, "timestep_spacing": "trailing"}
LCM = {
    **SD_BETAS,
    "_class_name": "LCMScheduler",
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0}
SD2 = {**SD_SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
ZERO_SNR = {**SD_SCHEDULER, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
VIDEO = {**SDXL_SCHEDULER, "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}


def diffusers_classes() -> dict[str, Any]:
    import diffusers

    found = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)}
    return {
        name: cls
        for name, cls in found.items()
        if inspect.isclass(cls)
        and issubclass(cls, diffusers.SchedulerMixin)
        and cls is not diffusers.SchedulerMixin
    }


@pytest.mark.parametrize("config", [SD_SCHEDULER, SDXL_SCHEDULER, ANIMAGINE], ids=["SD", "SDXL", "Animagine"])
def test_published_schedulers_are_taken_as_they_are(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        check_scheduler(ROOT, config)
    assert caplog.text == ""
    assert scheduler_settings(config) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TURBO, "timestep_spacing 'trailing'.*distilled for a few steps, such as LCM, Turbo"),
        (LIGHTNING, "timestep_spacing 'trailing'.*Lightning"),
        (LCM, "LCMScheduler: it belongs to a checkpoint distilled"),
        ({**LCM, "_class_name": "TCDScheduler"}, "TCDScheduler: it belongs to a checkpoint distilled"),
        ({**LCM, "_class_name": "EulerDiscreteScheduler"}, "timestep_scaling 10.0; .*distilled"),
        (FLOW, "FlowMatchEulerDiscreteScheduler: it belongs to a flow matching model"),
        ({**SD_SCHEDULER, "use_flow_sigmas": True}, "use_flow_sigmas True; .*flow matching"),
        ({**SDXL_SCHEDULER, "shift": 3.0}, "shift 3.0; .*flow matching"),
        (EDM, "EDMDPMSolverMultistepScheduler: .*EDM"),
        (VIDEO, "timestep_type 'continuous'; .*EDM"),
        (SD2, "prediction_type 'v_prediction'; only 'epsilon'"),
        (ZERO_SNR, "rescale_betas_zero_snr True; .*zero signal"),
        ({**SD_SCHEDULER, "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({**SD_SCHEDULER, "thresholding": True}, "thresholding True; .*pixels"),
        ({**SD_SCHEDULER, "variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ({**SD_SCHEDULER, "prediction_type": "sample"}, "prediction_type 'sample'"),
        ({**SD_SCHEDULER, "_class_name": "MyScheduler"}, "MyScheduler: the runtime does not compute it"),
        ({**SD_SCHEDULER, "_class_name": None}, "names no class"),
        ({**SD_SCHEDULER, "_class_name": ["PNDMScheduler"]}, "names no class"),
    ],
)
def test_checkpoints_made_for_another_sampling_are_refused_with_the_reason(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_scheduler(ROOT, config)


@pytest.mark.filterwarnings(r"ignore:__array_\w+:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_a_supported_class_has_a_decision(name: str) -> None:
    """Its config with Stable Diffusion's betas, as the class itself saves it."""
    cls = diffusers_classes().get(name)
    if cls is None:
        pytest.skip(f"diffusers makes {name} only with an optional package")
    config = json.loads(cls(**SD_BETAS).to_json_string())
    assert {field for field in config if not field.startswith("_")} <= known_fields()
    check_scheduler(ROOT, config)
    kept = scheduler_settings(config)
    to_line(kept)  # strict JSON, as in bundle.json
    assert len(ddim_schedule(50, kept)) == 50


def test_every_other_class_of_diffusers_is_refused() -> None:
    others = diffusers_classes().keys() - {*CLASSES}
    assert len(others) > 20
    for name in others:
        with pytest.raises(CheckpointError, match=f"names {name}: "):
            check_scheduler(ROOT, {**SD_SCHEDULER, "_class_name": name})


WRONG: dict[str, list[Any]] = {
    "num_train_timesteps": [None, "1000", 1000.0, True, 999, 1001, 0, -1, 10**400, [1000]],
    "beta_start": [None, "0.00085", True, 0, -0.1, math.nan, math.inf, [], 0.013],
    "beta_end": [None, "0.012", False, 1, 1.5, math.nan, math.inf, {}, 0.0001, 0.9],
    "beta_schedule": [None, "squaredcos_cap_v2", "sigmoid", "Scaled_Linear", 1, []],
    "prediction_type": [None, "v_prediction", "sample", "flow_prediction", 1],
    "trained_betas": [[0.1], 0.1, "0.1", False],
    "timestep_spacing": [None, "trailing", "Leading", 1],
    "steps_offset": [None, "1", 2, -1, True, 1.0, 999],
    "set_alpha_to_one": [None, "false", 0, 1],
    "rescale_betas_zero_snr": [None, True, "false", 0],
    "thresholding": [True, "false", None],
    "clip_sample_range": [math.nan, math.inf, {"a": 1}, [[1]]],
    "lambda_min_clipped": [math.inf, math.nan],
    "_anything": [{"a": 1}, math.nan],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
@pytest.mark.parametrize("published", [SD_SCHEDULER, SDXL_SCHEDULER], ids=["SD", "SDXL"])
def test_a_value_that_cannot_be_meant_is_refused_by_name(
    field: str, value: Any, published: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=rf"^/checkpoint/scheduler has .*({field}|betas)") as caught:
        check_scheduler(ROOT, {**published, field: value})
    assert len(str(caught.value)) < 1000


def test_what_betas_leave_of_the_signal_depends_on_their_schedule() -> None:
    wider = {**SD_SCHEDULER, "beta_end": 0.028}
    check_scheduler(ROOT, wider)
    with pytest.raises(CheckpointError, match=r"which leave 4.7e-07 of the signal at the end"):
        check_scheduler(ROOT, {**wider, "beta_schedule": "linear"})


def test_numbers_too_large_for_a_double_are_refused(tmp_path: Path) -> None:
    text = json.dumps(SD_SCHEDULER).replace("0.012", "1e400")
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="beta_end inf; expected a number between 0 and 1"):
        check_scheduler(ROOT, read_json(tmp_path / "scheduler_config.json"))


@pytest.mark.parametrize("field", ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule"])
def test_what_has_another_default_in_diffusers_must_be_there(field: str) -> None:
    with pytest.raises(CheckpointError, match=f"has no {field}"):
        check_scheduler(ROOT, {key: value for key, value in SD_SCHEDULER.items() if key != field})


def test_ddim_must_say_how_it_ends() -> None:
    config = {**SD_SCHEDULER, "_class_name": "DDIMScheduler"}
    check_scheduler(ROOT, config)
    del config["set_alpha_to_one"]
    with pytest.raises(CheckpointError, match="has no set_alpha_to_one, which DDIMScheduler needs"):
        check_scheduler(ROOT, config)


def test_unknown_fields_and_sigmas_of_other_samplers_are_said(caplog: pytest.LogCaptureFixture) -> None:
    check_scheduler(ROOT, {**SD_SCHEDULER, "colour": "red", "use_karras_sigmas": True})
    assert "ignoring unknown fields colour" in caplog.text
    assert "has use_karras_sigmas, of its own sampler; videos are sampled by DDIM" in caplog.text


def test_the_class_in_model_index_counts_too() -> None:
    index = {"scheduler": ["diffusers", "LCMScheduler"]}
    with pytest.raises(CheckpointError, match=r"model_index\.json names LCMScheduler"):
        check_scheduler(ROOT, SD_SCHEDULER, index)
    check_scheduler(ROOT, SD_SCHEDULER, {"scheduler": ["diffusers", "DDIMScheduler"]})
    check_scheduler(ROOT, SD_SCHEDULER, {"scheduler": [None, None]})


@pytest.mark.parametrize("value", [None, "0.012", True, math.nan, math.inf, 0.0, 1.5, 0.0001])
def test_a_bundle_of_an_older_build_with_such_betas_is_refused_at_generate(value: Any) -> None:
    with pytest.raises(InputError, match="the scheduler's be"):
        ddim_schedule(50, {**SD_SCHEDULER, "beta_end": value})


# --- in a build ----------------------------------------------------------------------------------------


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def checkpoints(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "toy", symlinks=True))


def test_a_build_refuses_another_familys_scheduler_and_vae(checkpoints: Path) -> None:
    sd = checkpoints / "sd"
    recipe_from_options(toy_options(checkpoints))
    published = {path: path.read_bytes() for path in sd.rglob("*.json")}
    for file, fields, message in (
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}, "'trailing'.*distilled"),
        ("scheduler/scheduler_config.json", {"beta_end": None}, "beta_end None; expected a number"),
        ("model_index.json", {"scheduler": ["diffusers", "TCDScheduler"]}, "names TCDScheduler"),
        ("vae/config.json", {"shift_factor": 0.1159}, "shift_factor 0.1159, which Stable Diffusion v1 does"),
        ("vae/config.json", {"scaling_factor": 0.13025}, "scales latents by 0.13025, Stable Diffusion v1 by"),
        ("vae/config.json", {"latent_channels": 16}, "latents of 16 channels, Stable Diffusion v1's have 4"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean, which Stable Diffusion v1 does not"),
    ):
        edit(sd / file, **fields)
        with pytest.raises(CheckpointError, match=message):
            recipe_from_options(toy_options(checkpoints))
        (sd / file).write_bytes(published[sd / file])


def test_a_lamp_folders_scheduler_must_be_that_of_sd(checkpoints: Path) -> None:
    rain = checkpoints / "motions" / "rain"
    (rain / "scheduler").mkdir(exist_ok=True)
    path = rain / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(SD_SCHEDULER))
    options = BuildOptions(sd=checkpoints / "sd", motions={"rain": rain})
    recipe_from_options(options)
    edit(path, beta_end=0.02)
    with pytest.raises(CheckpointError, match=r"rain/scheduler has beta_end 0\.02, that of --sd 0\.012"):
        recipe_from_options(options)
    recipe_from_options(BuildOptions(motions={"rain": rain}))
    edit(path, prediction_type="v_prediction")
    with pytest.raises(CheckpointError, match="rain/scheduler has prediction_type 'v_prediction'"):
        recipe_from_options(BuildOptions(motions={"rain": rain / "unet"}))
