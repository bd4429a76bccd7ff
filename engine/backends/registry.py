# SPDX-License-Identifier: Apache-2.0
"""The list of backends, the choice among them, and loading of engines."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamp_trt.engine.backends import aotinductor, onnxruntime, openvino, tensorrt
from lamp_trt.engine.backends.backend import Backend, DeviceOptions, HostOptions, Residence
from lamp_trt.engine.backends.cpu import CpuPrecision, why_no_bf16
from lamp_trt.engine.errors import EngineError, InputError

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle

BACKENDS = (
    onnxruntime.BACKEND,
    tensorrt.BACKEND,
    aotinductor.BACKEND,
    openvino.BACKEND,
)

REFERENCE = onnxruntime.BACKEND
"""The default backend of builds, since it needs no compilation. On the CPU, verify compares other backends
with it, and sweeps run on it."""


def backends() -> tuple[Backend, ...]:
    return BACKENDS


def backends_on(ordinal: int | None) -> list[Backend]:
    """The backends for GPUs, or for the CPU if None, in the order in which "auto" tries them."""
    ranked = [(runner.rank, backend) for backend in BACKENDS if (runner := backend.on(ordinal))]
    return [backend for _, backend in sorted(ranked, key=lambda pair: pair[0])]


def names() -> list[str]:
    """Names of all backends, those for the CPU first."""
    return list(dict.fromkeys(backend.name for backend in (*backends_on(None), *backends_on(0))))


def find_backend(name: str) -> Backend:
    """Return the backend of that name. InputError if it is unknown."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise InputError(f"backend is {name!r}; choose one of {', '.join(names())}.")


def choose_backend(
    ordinal: int | None,
    backend: str,
    bundle: "Bundle",
    engine_dir: Path | None = None,
    cpu_precision: CpuPrecision | None = None,
) -> str:
    """Return the name of the backend to use; "auto" depends on the bundle's precision, the engines in
    `engine_dir` (None: the bundle's own folder) and the installed packages.

    InputError for an unknown backend, or for an arithmetic that it does not have. EngineError if none is
    ready, or if the backend does not support the bundle's precision.
    """
    if cpu_precision is not None:
        _check_cpu_precision(ordinal, cpu_precision)
    known = [known.name for known in backends_on(ordinal)]
    if backend != "auto" and backend not in known:
        raise InputError(f"backend is {backend!r}; on {_where(ordinal)} choose 'auto', {', '.join(known)}.")
    if backend == "auto":
        return _ready_backend(ordinal, bundle, engine_dir or bundle.engine_folder, cpu_precision).name
    find_backend(backend).require_precision(bundle)
    if not find_backend(backend).computes(bundle, cpu_precision):
        raise _not_computed(backend, cpu_precision)
    return backend


def faster_backend(ordinal: int | None, chosen: str, bundle: "Bundle") -> str:
    """A sentence that names the package of a backend that "auto" would prefer to `chosen`; "" if there is
    none. Backends that compile ahead of time do not count."""
    for backend in backends_on(ordinal):
        if backend.name == chosen:
            break
        runner = backend.on(ordinal)
        if runner and not backend.build and backend.runs(bundle):
            return f"{backend.title} would be faster here: pip install 'lamp-trt[{runner.extra}]'"
    return ""


def _check_cpu_precision(ordinal: int | None, asked: CpuPrecision) -> None:
    """InputError if no backend can compute in it here."""
    if ordinal is not None:
        raise InputError(f"cpu_precision is {asked!r}, but on a GPU nothing uses it: leave it out.")
    reason = why_no_bf16() if asked == "bf16" else ""
    if reason:
        raise InputError(f"cpu_precision is {asked!r}, but {reason}: leave it out.")


def _not_computed(backend: str, asked: CpuPrecision | None) -> InputError:
    able = [other for other in BACKENDS if asked in other.cpu_precisions]
    offer = " and ".join(other.title for other in able)
    extras = " or ".join(f"'lamp-trt[{other.host.extra}]'" for other in able if other.host)
    return InputError(
        f"cpu_precision is {asked!r}, which {offer} has for this bundle; {backend} computes in the bundle's "
        f"precision. Take --backend {able[0].name} (pip install {extras})."
    )


def _ready_backend(
    ordinal: int | None, bundle: "Bundle", engine_dir: Path, cpu_precision: CpuPrecision | None
) -> Backend:
    """The first backend that is ready, supports the bundle's precision and has the arithmetic."""
    refusing = unable = None
    for backend in backends_on(ordinal):
        runner = backend.on(ordinal)
        if runner and runner.ready(bundle, engine_dir):
            if backend.runs(bundle) and backend.computes(bundle, cpu_precision):
                return backend
            if backend.runs(bundle):
                unable = unable or backend
            refusing = refusing or backend
    if unable:
        raise _not_computed(unable.name, cpu_precision)
    if refusing:
        refusing.require_precision(bundle)
    compiling = [backend for backend in backends_on(ordinal) if backend.build]
    plain = [backend for backend in backends_on(ordinal) if not backend.build]
    extras = [f"'lamp-trt[{runner.extra}]'" for backend in plain if (runner := backend.on(ordinal))]
    raise EngineError(
        f"nothing runs this bundle on {_where(ordinal)}: {engine_dir} holds no engines, "
        f"{', '.join(backend.title for backend in plain)} is not installed. Build engines "
        f"(lamp-trt build --backend {compiling[0].name}) or pip install {' or '.join(extras)}."
    )


def _where(ordinal: int | None) -> str:
    return "the CPU" if ordinal is None else "a GPU"


def check_residence(backend: str, resident_motions: Residence) -> None:
    """InputError if the backend does not support that place for inactive motions."""
    if resident_motions not in find_backend(backend).residences:
        offer = " and ".join(other.title for other in BACKENDS if resident_motions in other.residences)
        raise InputError(
            f"resident_motions is {resident_motions!r}, which is {offer}'s; {backend} has no such choice."
        )


def host_engine(
    backend: str,
    bundle: "Bundle",
    network: str,
    *,
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: Path | None = None,
    cpu_precision: CpuPrecision | None = None,
) -> "Engine":
    """Load one network on the CPU; see HostOptions. EngineError if it cannot be loaded."""
    runner = find_backend(backend).host
    assert runner is not None, f"{backend} does not run on the CPU"
    return runner.load(bundle, network, HostOptions(motion, num_threads, engine_dir, cpu_precision))


def device_engine(
    backend: str,
    bundle: "Bundle",
    network: str,
    *,
    device: int,
    stream: int,
    motion: str | None = None,
    engine_dir: Path | None = None,
    resident_motions: Residence = "mapped",
) -> "DeviceEngine":
    """Load one network on CUDA device `device` for `stream`; see DeviceOptions. Raises as host_engine."""
    runner = find_backend(backend).device
    assert runner is not None, f"{backend} does not run on GPUs"
    options = DeviceOptions(device, stream, motion, engine_dir, resident_motions)
    return runner.load(bundle, network, options)
