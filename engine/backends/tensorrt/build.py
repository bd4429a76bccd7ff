# SPDX-License-Identifier: Apache-2.0
"""Compilation of a bundle's networks by TensorRT, one at a time. Needs neither checkpoints nor torch.

Weights are passed from the mapped files. TensorRT-RTX builds without a GPU, for every GPU that it supports;
TensorRT measures kernels on the GPU that it builds for. No GPU has run an engine of this module yet.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey, Setting
from lamp_trt.engine.backends.cuda.calls import architecture, cuda
from lamp_trt.engine.backends.tensorrt import BACKEND, trt
from lamp_trt.engine.backends.tensorrt.key import (
    AMPERE_PLUS,
    ANY_RTX,
    can_exchange,
    engine_key,
)
from lamp_trt.engine.backends.tensorrt.network import ParsedNetwork, add_profile, parse_network
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions, options_from_request, shape_text
from lamp_trt.engine.backends.tensorrt.progress import interruptible, progress_monitor
from lamp_trt.engine.bundle.atomic_files import replacing
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import LAMP

assert BACKEND.build is not None
PLAN_SUFFIX = BACKEND.build.suffix

log = logging.getLogger("lamp_trt")


@dataclass(frozen=True)
class Target:
    """One engine to build. motion: the motion that the graph points at, fixed unless `refittable`."""

    network: str
    motion: str | None
    refittable: bool
    stripped: bool


def build_requested(request: BuildRequest) -> list[CompiledEngine]:
    """Build the engines that `lamp-trt build --backend tensorrt` requests: `Build.function` of the record."""
    return build_engines(request.bundle, options_from_request(request), request.engine_dir)


def build_engines(
    bundle: Bundle, options: TensorRtOptions, engine_dir: Path | None = None
) -> list[CompiledEngine]:
    """Build missing engines into `engine_dir` (None: the bundle's own folder), and return all engines.

    Ctrl-C or an error keeps finished engines and leaves no partial files. InputError for options that do not
    fit the bundle, EngineError if TensorRT is missing or fails.
    """
    module = trt.tensorrt()
    folder = bundle.engine_folder if engine_dir is None else engine_dir
    device = _device(module, options)
    engines = []
    for target in _targets(bundle, module, options):
        key = _key(bundle, module, device, target, options)
        if compiled.has(folder, key):
            log.info("%s exists already: %s", _title(target), key.stem)
            engines += [engine for engine in compiled.known(folder) if engine.path.stem == key.stem]
        else:
            compiled.prepare_folder(folder)
            engines.append(_build(bundle, module, target, key, options, folder))
    bundle.check_unchanged()
    return engines


def _device(module: ModuleType, options: TensorRtOptions) -> str:
    """The device in the engines' keys. EngineError for unsupported options, before anything is built."""
    if trt.is_rtx(module):
        for name in ("hardware_compatibility", "version_compatible", "weight_stripped"):
            if getattr(options, name) not in (False, "none"):
                raise EngineError(
                    f"TensorRT-RTX cannot build ahead of time with {name.replace('_', ' ')}: leave that "
                    "out, or install TensorRT (pip install 'lamp-trt[tensorrt]')."
                )
        return ANY_RTX
    cuda("cudaSetDevice", options.device)
    found = architecture(options.device)
    return AMPERE_PLUS if options.hardware_compatibility == "ampere_plus" else found


def _targets(bundle: Bundle, module: ModuleType, options: TensorRtOptions) -> Iterator[Target]:
    """One engine per network; without refit, one LAMP UNet engine per motion."""
    no_refit = trt.why_no_refit(module)
    if options.refit and no_refit:
        raise EngineError(
            f"motions cannot be exchanged in an engine: {no_refit}. Leave `refit` of TensorRtOptions as None."
        )
    ranged = {(profile.network, profile.input) for profile in options.profiles}
    known = {(name, t.name) for name, entry in bundle.manifest.networks.items() for t in entry.inputs}
    for network, tensor in sorted(ranged - known):
        raise InputError(f"profile names {network}.{tensor}, which {bundle.path} does not hold.")
    for network in options.networks or tuple(bundle.manifest.networks):
        bundle.network(network)
        if network != LAMP.unet:
            yield Target(network, None, False, options.weight_stripped)
            continue
        motions = options.motions or tuple(bundle.manifest.motions)
        exchangeable = [motion for motion in motions if can_exchange(bundle, motion)]
        baked = [motion for motion in motions if motion not in exchangeable]
        if no_refit is None and options.refit is not False:
            for motion in exchangeable[:1]:
                yield Target(network, motion, True, False)
        else:
            baked = list(motions)
            if no_refit and len(exchangeable) > 1:
                log.warning("%s: each of the motions %s gets an engine", no_refit, ", ".join(motions))
        for motion in baked:
            yield Target(network, motion, False, options.weight_stripped)


def _key(
    bundle: Bundle, module: ModuleType, device: str, target: Target, options: TensorRtOptions
) -> CompiledKey:
    key = engine_key(
        bundle, target.network, module, device, motion=target.motion, refittable=target.refittable
    )
    ranges = {profile.input: profile for profile in options.profiles if profile.network == target.network}
    inputs = bundle.network(target.network).inputs
    return dataclasses.replace(
        key,
        profile={t.name: ranges[t.name].shapes if t.name in ranges else shape_text(t.shape) for t in inputs},
        flags=options.flags(refittable=target.refittable, stripped=target.stripped),
        compiler=trt.compatible_compiler(module) if options.version_compatible else key.compiler,
    )


def _build(
    bundle: Bundle,
    module: ModuleType,
    target: Target,
    key: CompiledKey,
    options: TensorRtOptions,
    folder: Path,
) -> CompiledEngine:
    """Compile and store one engine."""
    start = time.monotonic()
    cache = _cache_path(folder, key) if options.timing_cache and not trt.is_rtx(module) else None
    monitor = progress_monitor(module, _title(target))
    parsed = parse_network(bundle, module, target.network, target.motion)
    extra: dict[str, Setting] = {
        "bundle": bundle.digest,
        "refittable_weights": parsed.mark_motion() if target.refittable else 0,
        "stripped": target.stripped,
        "weight_streaming": options.weight_streaming,
    }

    def write(file: BinaryIO) -> None:
        def compile_network() -> None:
            if not trt.is_rtx(module):
                cuda("cudaSetDevice", options.device)  # the current device is per thread
            _compile(parsed, target, options, monitor, cache, file)

        interruptible(compile_network, monitor.cancel)

    engine = compiled.store(folder, key, PLAN_SUFFIX, extra, write)
    size, seconds = engine.path.stat().st_size, time.monotonic() - start
    log.info("%s: %s, %.1f MB in %.1f s", _title(target), engine.path.name, size / 1e6, seconds)
    return engine


def _compile(
    parsed: ParsedNetwork,
    target: Target,
    options: TensorRtOptions,
    monitor: Any,
    cache: Path | None,
    file: BinaryIO,
) -> None:
    """Build the plan and stream it to `file`, to avoid another copy in memory.

    EngineError if the build fails; errors of writing are raised unchanged.
    """
    module = parsed.module
    config = _config(parsed, target, options)
    config.progress_monitor = monitor
    if cache is not None:
        _attach_timing_cache(module, config, cache)
    writer = stream_writer(module, file)
    built = parsed.builder.build_serialized_network_to_stream(parsed.network, config, writer)
    if writer.error is not None:
        raise writer.error
    if not built:
        raise EngineError(
            f"TensorRT cannot build {_title(target)}: {trt.taken_errors(module)}. If memory ran out, limit "
            "--workspace or lower --optimization-level."
        )
    if cache is not None:
        _keep_timing_cache(config, cache)


def stream_writer(module: ModuleType, file: BinaryIO) -> Any:
    """An IStreamWriter to `file`. Exceptions must not pass through TensorRT's code: they are kept in
    `error`."""

    class Writer(module.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IStreamWriter.__init__(self)
            self.error: BaseException | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except BaseException as error:  # noqa: BLE001 - raised in _compile
                self.error = error
                return 0

    return Writer()


def _config(parsed: ParsedNetwork, target: Target, options: TensorRtOptions) -> Any:
    module, config = parsed.module, parsed.builder.create_builder_config()
    for flag in _flags(module, target, options):
        config.set_flag(flag)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.detailed:
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
    ranges = [profile for profile in options.profiles if profile.network == parsed.name]
    add_profile(parsed.builder, config, parsed.network, ranges)
    return config


def _flags(module: ModuleType, target: Target, options: TensorRtOptions) -> list[Any]:
    flag = module.BuilderFlag
    flags = [flag.REFIT_INDIVIDUAL] if target.refittable else []
    if target.stripped:
        flags += [flag.STRIP_PLAN, flag.REFIT_IDENTICAL]
    if options.weight_streaming:
        flags.append(flag.WEIGHT_STREAMING)
    if options.version_compatible:
        flags.append(flag.VERSION_COMPATIBLE)
    return flags


def _cache_path(folder: Path, key: CompiledKey) -> Path:
    """The timing cache of a TensorRT version and GPU: measured times hold only for that pair."""
    return folder / f"timing-{key.compiler}-{key.device}.cache".replace(" ", "_")


def _attach_timing_cache(module: ModuleType, config: Any, path: Path) -> None:
    """Let the builder use and extend the timing cache in `path`; one that it refuses is replaced."""
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        log.warning(
            "TensorRT refuses the timing cache %s (%s): it is replaced", path, trt.taken_errors(module)
        )
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config: Any, path: Path) -> None:
    with replacing(path) as file:
        file.write(memoryview(config.get_timing_cache().serialize()))


def _title(target: Target) -> str:
    if target.refittable:
        return f"{target.network} (refittable)"
    return f"{target.network} ({target.motion})" if target.motion else target.network
