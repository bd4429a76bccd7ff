# SPDX-License-Identifier: Apache-2.0
"""The record of a backend: its properties and functions, so that other code needs no backend names.

A backend is a package in this folder whose __init__ exports `BACKEND`, and a line in registry.py. Records are
created when the command line starts, so they import libraries only inside functions.
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
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import COMPONENTS

if TYPE_CHECKING:
    from lamp_trt.engine.backends.compiled import CompiledEngine
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle

Residence = Literal["mapped", "pinned", "device"]
"""Where inactive motions are kept: in their mapped files, in page-locked host memory, or on the device."""


@dataclass(frozen=True)
class HostOptions:
    """Options for loading one network on the CPU.

    motion       initial motion of the LAMP UNet
    num_threads  None: the backend's choice
    engine_dir   folder of compiled engines; None: the bundle's own
    cpu_precision  arithmetic on the CPU; None: see cpu.arithmetic
    """

    motion: str | None = None
    num_threads: int | None = None
    engine_dir: Path | None = None
    cpu_precision: CpuPrecision | None = None


@dataclass(frozen=True)
class DeviceOptions:
    """Options for loading one network on a GPU.

    device            ordinal of the CUDA device
    stream            cudaStream_t that it runs on
    motion, engine_dir: as in HostOptions
    resident_motions  where inactive motions are kept
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
    """Functions and properties of a backend on one kind of device, the CPU or GPUs.

    load   (bundle, network, options) → engine; EngineError if it cannot be loaded
    rank   "auto" tries the backends of that kind of device in ascending order
    ready  (bundle, folder of engines) → whether "auto" may choose it: it is installed and has its engines
    extra  pip extra that installs its requirements
    """

    load: "Callable[[Bundle, str, Options], Loaded]"
    rank: int
    ready: "Callable[[Bundle, Path], bool]"
    extra: str


@dataclass(frozen=True)
class BuildRequest:
    """A request to compile networks of a bundle.

    engine_dir   folder for compiled engines; None: the bundle's own
    device       to compile for: "cpu", "cuda", "cuda:N", or "auto" for the backend's choice
    networks     all if empty
    motions      motions to compile if an engine has a fixed one; all if empty
    checkpoints  the BuildOptions (export/recipe.py) of the bundle's build; None: not given
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
    """An option of `lamp-trt build`, like "--no-refit", and its arguments for `add_argument`."""

    option: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The attribute in argparse's namespace, like "no_refit"."""
        return self.option.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Build:
    """Ahead-of-time compilation of a backend.

    function          "module:function": BuildRequest → all requested engines. A name instead of an import: it
                      may be a part of export, which engine must not import
    suffix            suffix of the engine files
    from_checkpoints  whether it needs the checkpoints; otherwise a finished bundle is enough
    flags             backend-specific options of `lamp-trt build`
    """

    function: str
    suffix: str
    from_checkpoints: bool
    flags: tuple[Flag, ...] = ()

    def __call__(self, request: BuildRequest) -> "list[CompiledEngine]":
        """Compile missing engines. InputError for invalid flags, EngineError if the compiler fails."""
        module, _, name = self.function.partition(":")
        engines: list[CompiledEngine] = getattr(importlib.import_module(module), name)(request)
        return engines


@dataclass(frozen=True)
class Extra:
    """A pip extra that installs a backend.

    purpose   its description in `lamp-trt doctor`
    required  whether videos cannot be made without it
    modules   modules that only it installs: a ModuleNotFoundError of one names the extra
    """

    name: str
    purpose: str
    required: bool = False
    modules: tuple[str, ...] = ()


class OperatorSeconds(Protocol):
    """Function that returns the seconds per operator of one run on the CPU, in descending order."""

    def __call__(
        self,
        bundle: "Bundle",
        network: str,
        arrays: Mapping[str, Any],
        options: HostOptions,
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Backend:
    """One backend.

    name              value of --backend
    title             its name in messages
    extras            pip extras that install it
    packages          pip packages that may contain its library
    exclusive         whether these packages overwrite each other, so that only one may be installed
    library           function that imports its library; EngineError or ModuleNotFoundError if unusable
    probe             machine → rows of `lamp-trt doctor`: whether it is installed, what it can run on
    precisions        precisions of bundles that it runs
    remedy            what to do with a bundle in another precision, with {bundle} for its path
    host, device      runners for the CPU and for GPUs; None if unsupported
    build             ahead-of-time compilation; None if it needs none
    residences        supported places of inactive motions on a GPU
    cpu_precisions    arithmetic that it offers on the CPU for any bundle; () if the bundle decides
    operator_seconds  profiles a network with the library's own profiler; None if unsupported
    """

    name: str
    title: str
    extras: tuple[Extra, ...]
    packages: tuple[str, ...]
    library: Callable[[], ModuleType]
    probe: Callable[[Machine], list[ProbeRow]]
    precisions: tuple[Precision, ...]
    remedy: str = ""
    exclusive: bool = False
    host: "Runner[HostOptions, Engine] | None" = None
    device: "Runner[DeviceOptions, DeviceEngine] | None" = None
    build: Build | None = None
    residences: tuple[Residence, ...] = ("mapped",)
    cpu_precisions: tuple[CpuPrecision, ...] = ()
    operator_seconds: OperatorSeconds | None = None

    def on(self, ordinal: int | None) -> "Runner[Any, Any] | None":
        """The runner for CUDA device `ordinal`, for the CPU if None."""
        return self.host if ordinal is None else self.device

    def runs(self, bundle: "Bundle") -> bool:
        """Whether it supports the precision of all of the bundle's networks."""
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
            if network.precision not in self.precisions:
                raise EngineError(
                    f"{bundle.path} is in precision {network.precision}, which {self.title} does not run. "
                    + self.remedy.format(bundle=bundle.path)
                )


def parse_device(device: str) -> int | None:
    """Return the ordinal of "cuda" or "cuda:N"; None for "cpu" and, until tested on a GPU, for "auto".

    InputError for anything else.
    """
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise InputError(f"device is {device!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    return int(match[1] or 0)
