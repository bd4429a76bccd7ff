# SPDX-License-Identifier: Apache-2.0
"""Check of scheduler_config.json: whether our DDIM (runtime/algorithm/ddim.py) can sample the model.

A checkpoint is trained on a noise schedule (betas) and a prediction type; both must be supported. The
folder's sampler is replaced by DDIM with leading spacing. That is valid for every sampler of an undistilled
model, and invalid for models distilled for a few steps, trained with zero terminal SNR, with EDM's sigmas or
with flow matching. docs/checkpoints.md has the table. Fields and defaults: diffusers 0.42.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.bundle.manifest import BETA_SCHEDULES
from lamp_trt.engine.errors import CheckpointError

log = logging.getLogger("lamp_trt")

NUM_TRAIN_TIMESTEPS = 1000
MIN_FINAL_ALPHA = 1e-6
"""Minimum of the product of 1 - beta; Stable Diffusion's is 0.0047. DDIM divides by its square root."""

CLASSES = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Samplers of undistilled models. Their default timestep_spacing is leading or linspace."""

_FEW_STEPS = "it belongs to a checkpoint distilled for a few steps, such as LCM, Turbo, Lightning or Hyper-SD"
_ZERO_SNR = (
    "it belongs to a checkpoint trained down to zero signal, which DDIM from timestep 981 does not fit"
)
_FLOW = "it belongs to a flow matching model, such as SD 3 or Flux"
_EDM = "it belongs to a model with EDM's sigmas, such as Playground v2.5"
_PIXELS = "it belongs to a model of pixels, not of latents"
_OTHERS = "the runtime does not compute it"

_CLASS_REASONS = (
    (("LCM", "TCD"), _FEW_STEPS),
    (("Flow", "Helios", "SCM", "Piflow", "LTX", "MiniMax"), _FLOW),
    (("EDM", "Karras", "ScoreSde", "CMStochastic", "Consistency"), _EDM),
    (("CogVideoX",), "it shifts the signal-to-noise ratio"),
)

_LOGGED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

SAMPLER_FIELDS = frozenset(
    (
        *("algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector"),
        *("dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift"),
        *("interpolation_type", "lambda_min_clipped", "lower_order_final", "predict_x0", "predictor_order"),
        *("sample_max_value", "skip_prk_steps", "solver_order", "solver_p", "solver_type"),
        *("time_shift_type", "use_lu_lambdas", *_LOGGED),
    )
)
"""Settings of the folder's sampler, which DDIM ignores."""

_Rule = tuple[Callable[[Any], bool], str, str]
_RULES: Mapping[str, _Rule] = {
    "prediction_type": (
        lambda value: value == "epsilon",
        "only 'epsilon' is supported (Stable Diffusion v1.4, v1.5 and SDXL; not v2.x at 768 pixels)",
        "",
    ),
    "beta_schedule": (
        lambda value: isinstance(value, str) and value in BETA_SCHEDULES,
        f"supported are {' and '.join(BETA_SCHEDULES)} schedules",
        "Stable Diffusion v1.4 and SDXL have scaled_linear. Was the file edited?",
    ),
    "trained_betas": (lambda value: value is None, "supported is null", _OTHERS),
    "num_train_timesteps": (
        lambda value: type(value) is int and value == NUM_TRAIN_TIMESTEPS,
        f"supported is {NUM_TRAIN_TIMESTEPS}",
        "Stable Diffusion v1.4 and SDXL were trained on 1000",
    ),
    "timestep_spacing": (
        lambda value: value in ("leading", "linspace"),
        "supported are 'leading' and 'linspace'",
        _FEW_STEPS,
    ),
    "steps_offset": (lambda value: type(value) is int and value in (0, 1), "supported are 0 and 1", _OTHERS),
    "set_alpha_to_one": (lambda value: type(value) is bool, "supported are true and false", _OTHERS),
    "rescale_betas_zero_snr": (lambda value: value is False, "supported is false", _ZERO_SNR),
    "thresholding": (lambda value: value is False, "supported is false", _PIXELS),
    "use_flow_sigmas": (lambda value: value is False, "supported is false", _FLOW),
    "use_dynamic_shifting": (lambda value: value is False, "supported is false", _FLOW),
    "shift": (lambda value: False, "it is not supported", _FLOW),
    "shift_terminal": (lambda value: value is None, "supported is null", _FLOW),
    "snr_shift_scale": (lambda value: False, "it is not supported", "it shifts the signal-to-noise ratio"),
    "timestep_scaling": (lambda value: False, "it is not supported", _FEW_STEPS),
    "original_inference_steps": (lambda value: False, "it is not supported", _FEW_STEPS),
    "timestep_type": (lambda value: value == "discrete", "supported is 'discrete'", _EDM),
    "sigma_min": (lambda value: value is None, "supported is null", _EDM),
    "sigma_max": (lambda value: value is None, "supported is null", _EDM),
    "sigma_data": (lambda value: False, "it is not supported", _EDM),
    "variance_type": (
        lambda value: value is None or (isinstance(value, str) and value.startswith("fixed_")),
        "supported are null and the fixed ones",
        "the UNet would predict a variance too",
    ),
}
"""Field → (whether a value is supported, the supported values in words, the reason against others)."""

_REQUIRED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
"""Fields whose diffusers default differs from Stable Diffusion's value."""


def check_scheduler(folder: Path, config: Mapping[str, Any], index: Mapping[str, Any] | None = None) -> None:
    """Raise CheckpointError, naming field and reason, unless DDIM can sample the checkpoint in `folder`.

    config: its scheduler_config.json. index: its model_index.json, whose scheduler class takes precedence in
    diffusers.
    """
    where = folder / "scheduler"
    name = config.get("_class_name")
    _check_class(where, name)
    match (index or {}).get("scheduler"):
        case [_, str(indexed)] if indexed != name:
            _check_class(folder / "model_index.json", indexed)
    for field in _REQUIRED:
        if field not in config:
            raise CheckpointError(
                f"{where} has no {field}; expected a complete scheduler_config.json. Was the file edited?"
            )
    if name in ("DDIMScheduler", "DDIMParallelScheduler") and "set_alpha_to_one" not in config:
        raise CheckpointError(f"{where} has no set_alpha_to_one, which {name} needs. Was the file edited?")
    for field, (is_supported, supported, reason) in _RULES.items():
        if field in config and not is_supported(config[field]):
            because = f": {reason}" if reason else ""
            raise CheckpointError(f"{where} has {field} {config[field]!r:.100}; {supported}{because}.")
    _check_betas(where, config)
    unknown = sorted(field for field in config if field not in known_fields() and not field.startswith("_"))
    if unknown:
        log.warning("%s: ignoring unknown fields %.500s", where, ", ".join(unknown))
    sigmas = [field for field in _LOGGED if config.get(field)]
    if sigmas:
        log.warning("%s has %s, of its own sampler; videos are sampled by DDIM", where, ", ".join(sigmas))
    for field, value in scheduler_settings(config).items():
        items = value if isinstance(value, list) else [value]
        if not all(_is_plain(item) for item in items):
            raise CheckpointError(
                f"{where} has {field:.100} {value!r:.100}; expected a number, text or null."
            )


def known_fields() -> frozenset[str]:
    """The names of all fields that are checked or deliberately ignored."""
    return SAMPLER_FIELDS | _RULES.keys() | set(_REQUIRED)


def scheduler_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of scheduler_config.json that a bundle keeps: all except DPM-Solver's lambda_min_clipped if
    it is -Infinity, which is not valid JSON."""
    unbounded = -math.inf
    return {
        field: value
        for field, value in config.items()
        if not (field == "lambda_min_clipped" and value == unbounded)
    }


def check_same_noise(motion: Path, own: Mapping[str, Any], sd: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the LAMP folder `motion` has another noise schedule than --sd's.

    own, sd: the two scheduler_config.json.
    """
    for field in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"):
        if own.get(field) != sd.get(field):
            raise CheckpointError(
                f"{motion / 'scheduler'} has {field} {own.get(field)!r:.100}, that of --sd "
                f"{sd.get(field)!r:.100}: the motion was trained on another Stable Diffusion. Give that one "
                "as --sd."
            )


def _check_class(where: Path, name: Any) -> None:
    if isinstance(name, str) and name in CLASSES:
        return
    if not isinstance(name, str):
        raise CheckpointError(
            f"{where} names no class of scheduler (_class_name {name!r:.100}); "
            f"supported: {', '.join(CLASSES)}."
        )
    reason = next((why for starts, why in _CLASS_REASONS if name.startswith(starts)), _OTHERS)
    raise CheckpointError(
        f"{where} names {name:.100}: {reason}. Supported are Stable Diffusion v1 and SDXL base with "
        f"the schedulers {', '.join(CLASSES)}."
    )


def _check_betas(where: Path, config: Mapping[str, Any]) -> None:
    for field in ("beta_start", "beta_end"):
        value = config[field]
        if type(value) not in (int, float) or not 0 < value < 1:
            raise CheckpointError(
                f"{where} has {field} {value!r:.100}; expected a number between 0 and 1 (Stable Diffusion's: "
                "0.00085 to 0.012)."
            )
    start, end = config["beta_start"], config["beta_end"]
    if start > end:
        raise CheckpointError(f"{where} has beta_start {start!r} above beta_end {end!r}; noise must grow.")
    power = 2 if config["beta_schedule"] == "scaled_linear" else 1
    first, last = start ** (1 / power), end ** (1 / power)
    steps = NUM_TRAIN_TIMESTEPS - 1
    betas = ((first + (last - first) * i / steps) ** power for i in range(NUM_TRAIN_TIMESTEPS))
    final = math.prod(1 - beta for beta in betas)
    if final < MIN_FINAL_ALPHA:
        raise CheckpointError(
            f"{where} has betas from {start!r} to {end!r}, which leave {final:.1e} of the signal at the end; "
            f"expected at least {MIN_FINAL_ALPHA:.0e} (Stable Diffusion's: 4.7e-03)."
        )


def _is_plain(value: Any) -> bool:
    return (
        value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    )
