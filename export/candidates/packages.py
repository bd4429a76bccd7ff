# SPDX-License-Identifier: Apache-2.0
"""Layer forms and settings of an AOTInductor package: measured before it is compiled, recorded in its key and
sidecar.

The key's options hold what the code has, like forms "gate=taps" and conv_as_mm true, not how it was chosen. A
measured choice cannot be known before measuring, so the sidecar of such a package holds what was considered:
by that a later build finds it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import recorded_calls
from lamp_trt.export.candidates.choice import Choice, Timer, choose
from lamp_trt.export.lamp.lean_unet import use_forms

FORMS, CONSIDERED, MEASURED = "forms", "forms_considered", "forms_measured"
"""Option of the key; entries of the sidecar: registry.considered(), and times and reasons of all forms."""

SETTINGS_CONSIDERED, SETTINGS_MEASURED = "settings_considered", "settings_measured"
"""Entries of the sidecar: names of the settings that were measured, and their times and reasons."""

OPEN = (FORMS, *(setting.name for setting in registry.SETTINGS))
"""Options of the key that are registry.AUTO in a request until they are measured."""


def requested_forms(forms: str, device: str) -> str:
    """What a key holds of the request `forms` before anything is measured: "auto", or the forms as `text_of`
    writes them. InputError for unknown forms, and for kernels of a GPU on a CPU."""
    if forms == registry.AUTO:
        return registry.AUTO if device != "cpu" else registry.DEFAULT
    chosen = registry.parsed(forms)
    for slot, name in chosen.items():
        needed = registry.find(slot, name).requires
        if needed and device == "cpu":
            raise InputError(f"{slot}={name} is a kernel for GPUs, written in {needed}; choose another form.")
    return registry.text_of(chosen)


def existing_key(folder: Path, requested: CompiledKey) -> CompiledKey | None:
    """The key of a package in `folder` that answers a request: the same key, or for what is measured one that
    was chosen from what would be considered now. None if there is none."""
    unknown = [name for name in OPEN if requested.flags.get(name) == registry.AUTO]
    if not unknown:
        return requested if compiled.has(folder, requested) else None
    for engine in reversed(compiled.known(folder)):
        same = with_flags(engine.key, dict.fromkeys(unknown, registry.AUTO)).digest() == requested.digest()
        if same and _was_measured(engine, unknown) and compiled.has(folder, engine.key):
            return engine.key
    return None


def _was_measured(engine: CompiledEngine, options: list[str]) -> bool:
    """Whether an engine's `options` were chosen by measuring what would be measured now."""
    settings = str(engine.extra.get(SETTINGS_CONSIDERED, "")).split()
    return all(
        engine.extra.get(CONSIDERED) == registry.considered() if name == FORMS else name in settings
        for name in options
    )


def with_flags(key: CompiledKey, flags: Mapping[str, bool | str]) -> CompiledKey:
    return dataclasses.replace(key, flags={**key.flags, **flags})


def measured_forms(
    module: nn.Module, arguments: tuple[Tensor, ...], device: torch.device, timer: Timer
) -> Choice:
    """The fastest forms of a module that is on `device`, with memory for its parameters."""
    return choose(recorded_calls(module, arguments), timer, device)


def apply_forms(module: nn.Module, forms: str) -> None:
    """Give `module`'s layers the forms of a key. EngineError if a kernel's language is not installed."""
    chosen: dict[str, Callable[..., Tensor]] = {}
    for slot, name in registry.parsed(forms).items():
        candidate = registry.find(slot, name)
        try:
            chosen[slot] = candidate.load()
        except ModuleNotFoundError as error:
            raise EngineError(
                f"layer form {candidate.title} needs {error.name}, which is not installed: pip install "
                f"{candidate.requires or error.name}, or choose another form."
            ) from error
    use_forms(module, chosen)
