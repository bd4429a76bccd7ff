# SPDX-License-Identifier: Apache-2.0
"""The record of a backend: whatever other code needs to know of one, so that none has to know its name.

A backend is a package in this folder whose __init__ exports `BACKEND`, and a line in registry.py. Records are
made when the command line starts, so they import no library: what loads one is behind a function.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.backends.probe import Machine, ProbeRow
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import COMPONENTS

if TYPE_CHECKING:
    from lamp_trt.engine.backends.compiled import CompiledEngine
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle

Residence = Literal["mapped", "pinned", "device"]
"""Where a motion waits to be shown: in its mapped file, in page-locked host memory, or on the device."""


@dataclass(frozen=True)
class HostOptions:
    """How one network is loaded on the CPU.

    motion       shown first by the LAMP UNet
    num_threads  None: the backend's choice
    engine_dir   where compiled engines are; None: in the bundle
    cpu_precision  the arithmetic; None: see cpu.arithmetic
    """

    motion: str | None = None
    num_threads: int | None = None
    engine_dir: Path | None = None
    cpu_precision: CpuPrecision | None = None


@dataclass(frozen=True)
class DeviceOptions:
    """How one network is loaded on a GPU.

    device            ordinal of the CUDA device
    stream            cudaStream_t that it will run on
    motion, engine_dir: as in HostOptions
    resident_motions  where motions wait to be shown
    """

    device: int
    stream: int
    motion: str | None = None
    engine_dir: Path | None = None
    resident_motions: Residence = "mapped"


Options = TypeVar("Options")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Runner(Generic[Options, Loaded]):
    """How a backend runs networks on one kind of device, the CPU or GPUs.

    load   (bundle, network, options) → its engine; EngineError if it cannot be loaded
    rank   in the order in which "auto" tries the backends of that kind of device, the lowest first
    ready  (bundle, folder of compiled engines) → whether "auto" may take it: it is installed, has its engines
    extra  pip extra that brings what it needs
    """

    load: "Callable[[Bundle, str, Options], Loaded]"
    rank: int
    ready: "Callable[[Bundle, Path], bool]"
    extra: str


@dataclass(frozen=True)
class BuildRequest:
    """Networks of a bundle that are to be compiled.

    engine_dir   where compiled engines go; None: into the bundle
    device       to compile for: "cpu", "cuda", "cuda:N", or "auto" for the backend's choice
    networks     all if empty
    motions      to compile for where an engine shows one motion for good; all if empty
    checkpoints  the BuildOptions of export/recipe.py that the bundle was built with; None: not given
    flags        values of the backend's own options of `lamp-trt build`, by `Flag.name`; missing: the default
    """

    bundle: "Bundle"
    engine_dir: Path | None = None
    device: str = "auto"
    networks: tuple[str, ...] = ()
    motions: tuple[str, ...] = ()
    checkpoints: Any = None
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Flag:
    """An option of `lamp-trt build`, like "--no-refit", and the arguments of `add_argument` for it."""

    option: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Like "no_refit"."""
        return self.option.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Build:
    """How a backend compiles networks beforehand.

    function          "module:function" of BuildRequest, which returns every engine that was asked for. It is
                      named and not imported: it may be a part of export, which engine must not import
    suffix            of the files that it makes
    from_checkpoints  whether it needs the checkpoints; else a finished bundle is enough
    flags             its own options of `lamp-trt build`
    """

    function: str
    suffix: str
    from_checkpoints: bool
    flags: tuple[Flag, ...] = ()

    def __call__(self, request: BuildRequest) -> "list[CompiledEngine]":
        """Compile what is missing. Raises InputError for flags, EngineError if the compiler fails."""
        module, _, name = self.function.partition(":")
        engines: list[CompiledEngine] = getattr(importlib.import_module(module), name)(request)
        return engines


@dataclass(frozen=True)
class Extra:
    """A pip extra that brings a backend.

    purpose   as `lamp-trt doctor` says it
    required  whether no video can be made without it
    modules   that only it brings: a ModuleNotFoundError of one names the extra
    """

    name: str
    purpose: str
    required: bool = False
    modules: tuple[str, ...] = ()


class OperatorSeconds(Protocol):
    """Seconds of one run of a network on the CPU by operator, the most first."""

    def __call__(
        self,
        bundle: "Bundle",
        network: str,
        arrays: Mapping[str, Any],
        options: HostOptions,
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Backend:
    """One backend: where its engines are, what it runs, how it is built, shown and chosen.

    name              as --backend takes it
    title             as sentences have it
    extras            that bring it
    packages          pip packages that may hold its library
    exclusive         these install one module over each other, so that only one may be installed
    library           imports its library; EngineError or ModuleNotFoundError if it cannot be used
    probe             machine → rows of `lamp-trt doctor`: installed or not, what it can run on here
    host, device      how it runs networks on the CPU and on GPUs; None where it does not
    build             how networks are compiled beforehand; None where nothing is
    refusals          by precision of bundles that it does not run: the error, with {bundle} for the path
    residences        that it offers for motions on a GPU
    cpu_precisions    arithmetic that it offers on the CPU for any bundle; () where the bundle decides
    operator_seconds  the library's own profiler; None where it has none
    """

    name: str
    title: str
    extras: tuple[Extra, ...]
    packages: tuple[str, ...]
    library: Callable[[], ModuleType]
    probe: Callable[[Machine], list[ProbeRow]]
    exclusive: bool = False
    host: "Runner[HostOptions, Engine] | None" = None
    device: "Runner[DeviceOptions, DeviceEngine] | None" = None
    build: Build | None = None
    refusals: Mapping[Precision, str] = field(default_factory=dict)
    residences: tuple[Residence, ...] = ("mapped",)
    cpu_precisions: tuple[CpuPrecision, ...] = ()
    operator_seconds: OperatorSeconds | None = None

    def on(self, ordinal: int | None) -> "Runner[Any, Any] | None":
        """On CUDA device `ordinal`, on the CPU for None."""
        return self.host if ordinal is None else self.device

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Of bundles that it runs."""
        return tuple(precision for precision in PRECISIONS if precision not in self.refusals)

    def runs(self, bundle: "Bundle") -> bool:
        """Whether it runs the precision of each of the bundle's networks."""
        return all(network.precision in self.precisions for network in bundle.manifest.networks.values())

    def computes(self, bundle: "Bundle", asked: CpuPrecision | None) -> bool:
        """Whether it can compute the bundle's networks in `asked` on the CPU. Networks whose precision is the
        same in every bundle do not count."""
        if asked is None or asked in self.cpu_precisions:
            return True
        networks = bundle.manifest.networks.values()
        own = {entry.precision for entry in networks if COMPONENTS[entry.component].precision is None}
        return own <= {asked}

    def require_precision(self, bundle: "Bundle") -> None:
        """EngineError, with the remedy, unless it `runs` the bundle."""
        for network in bundle.manifest.networks.values():
            if network.precision in self.refusals:
                raise EngineError(self.refusals[network.precision].format(bundle=bundle.path))


def parse_device(device: str) -> int | None:
    """The ordinal of "cuda" or "cuda:N", None for "cpu" and, until a GPU has proven the rest, for "auto".

    InputError for anything else.
    """
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise InputError(f"device is {device!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    return int(match[1] or 0)
