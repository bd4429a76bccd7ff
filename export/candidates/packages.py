# SPDX-License-Identifier: Apache-2.0
"""Layer forms of an AOTInductor package: measured before it is compiled, recorded in its key and sidecar.

The key's option `forms` holds the forms that the code has, like "gate=taps", not how they were chosen. A
measured choice cannot be known before measuring, so the sidecar of such a package holds the forms that were
considered: by them a later build finds it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.compiled import CompiledKey
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import recorded_calls
from lamp_trt.export.candidates.choice import Choice, Timer, choose
from lamp_trt.export.lamp.lean_unet import use_forms

FORMS, CONSIDERED, MEASURED = "forms", "forms_considered", "forms_measured"
"""Option of the key; entries of the sidecar: registry.considered(), and times and reasons of all forms."""


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
    """The key of a package in `folder` that answers a request: the same key, or for measured forms one that
    was chosen from the forms that would be considered now. None if there is none."""
    if requested.flags.get(FORMS) != registry.AUTO:
        return requested if compiled.has(folder, requested) else None
    for engine in reversed(compiled.known(folder)):
        same = with_forms(engine.key, registry.AUTO).digest() == requested.digest()
        considered = engine.extra.get(CONSIDERED) == registry.considered()
        if same and considered and compiled.has(folder, engine.key):
            return engine.key
    return None


def with_forms(key: CompiledKey, forms: str) -> CompiledKey:
    return dataclasses.replace(key, flags={**key.flags, FORMS: forms})


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
