# SPDX-License-Identifier: Apache-2.0
"""Options of TensorRT builds, for Python and for `lamp-trt build`."""

from dataclasses import dataclass
from typing import Literal

from lamp_trt.engine.backends.backend import BuildRequest, Flag, parse_device
from lamp_trt.engine.backends.compiled import Setting
from lamp_trt.engine.errors import InputError

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE_COMPATIBILITY: tuple[HardwareCompatibility, ...] = ("none", "ampere_plus", "same_compute_capability")
MAX_OPTIMIZATION_LEVEL = 5

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """Range of shapes of one input: minimum, the one to optimize for, maximum."""

    network: str
    input: str
    least: Shape
    optimal: Shape
    greatest: Shape

    def __post_init__(self) -> None:
        shapes = (self.least, self.optimal, self.greatest)
        ranks = {len(shape) for shape in shapes}
        ordered = all(1 <= a <= b <= c for a, b, c in zip(*shapes, strict=False))
        if len(ranks) != 1 or not ordered:
            raise InputError(
                f"profile {self} does not rise: expected three shapes of equal rank, each axis least <= "
                "optimal <= greatest, like vae_decoder.latents=1x4x40x64:4x4x40x64:16x4x40x64."
            )

    @classmethod
    def parse(cls, text: str) -> "ShapeRange":
        """Parse "network.input=1x4:2x4:8x4", the form on the command line. InputError for anything else."""
        name, _, ranges = text.partition("=")
        network, _, tensor = name.partition(".")
        try:
            least, optimal, greatest = (
                tuple(int(axis) for axis in shape.split("x")) for shape in ranges.split(":")
            )
        except ValueError:
            network = ""
        if not network or not tensor:
            raise InputError(
                f"profile is {text!r:.100}; expected NETWORK.INPUT=LEAST:OPTIMAL:GREATEST, "
                "like vae_decoder.latents=1x4x40x64:4x4x40x64:16x4x40x64."
            )
        return cls(network, tensor, least, optimal, greatest)

    def __str__(self) -> str:
        return f"{self.network}.{self.input}={self.shapes}"

    @property
    def shapes(self) -> str:
        """Like "1x4:2x4:8x4"."""
        return ":".join(shape_text(shape) for shape in (self.least, self.optimal, self.greatest))


def shape_text(shape: Shape) -> str:
    """Like "2x4x16x40x64"."""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of a TensorRT build. InputError for invalid values.

    networks                 networks to build; all of the bundle's if empty
    motions                  motions to build if an engine has a fixed one; all if empty
    refit                    exchange motions in one LAMP UNet engine; None: if TensorRT supports it
    weight_stripped          omit weights from plans; they are read from the bundle at load
    weight_streaming         allow weights to stay in host memory at run time
    profiles                 shapes of inputs with dynamic axes
    workspace_bytes          maximum GPU memory for a layer's scratch; None: no limit
    optimization_level       0 to 5, how long to search; None: TensorRT's own default (3)
    timing_cache             keep measured kernel times in the engines' folder
    hardware_compatibility   other GPUs that engines must run on
    version_compatible       make engines loadable by later TensorRT of the same major version
    detailed                 keep layer descriptions in the engine, for `lamp-trt inspect --layers`
    device                   CUDA ordinal of the GPU to build on
    """

    networks: tuple[str, ...] = ()
    motions: tuple[str, ...] = ()
    refit: bool | None = None
    weight_stripped: bool = False
    weight_streaming: bool = False
    profiles: tuple[ShapeRange, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: bool = True
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    detailed: bool = False
    device: int = 0

    def __post_init__(self) -> None:
        level, workspace = self.optimization_level, self.workspace_bytes
        if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
            raise InputError(
                f"optimization level is {level}; choose 0 (fast build) to {MAX_OPTIMIZATION_LEVEL}."
            )
        if workspace is not None and workspace < 1:
            raise InputError(f"workspace is {workspace} bytes; expected at least 1.")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise InputError(
                f"hardware compatibility is {self.hardware_compatibility!r}; "
                f"choose one of {', '.join(HARDWARE_COMPATIBILITY)}."
            )
        if self.device < 0:
            raise InputError(f"device is {self.device}; GPUs are numbered from 0.")

    def flags(self, *, refittable: bool, stripped: bool) -> dict[str, Setting]:
        """The options that are part of an engine's key."""
        return {
            "refit": refittable,
            "weight_stripped": stripped,
            "weight_streaming": self.weight_streaming,
            "workspace_bytes": self.workspace_bytes or 0,
            "optimization_level": -1 if self.optimization_level is None else self.optimization_level,
            "hardware_compatibility": self.hardware_compatibility,
            "version_compatible": self.version_compatible,
            "detailed": self.detailed,
        }


FLAGS = (
    Flag(
        "--no-refit",
        {"action": "store_true", "help": "build one engine per motion instead of exchanging motions"},
    ),
    Flag("--weight-stripped", {"action": "store_true", "help": "omit weights from the plans"}),
    Flag("--weight-streaming", {"action": "store_true", "help": "allow weights to stay in host memory"}),
    Flag(
        "--profile",
        {
            "action": "append",
            "default": [],
            "help": "shapes of an input with dynamic axes",
            "metavar": "NETWORK.INPUT=LEAST:OPTIMAL:GREATEST",
        },
    ),
    Flag("--workspace", {"type": float, "help": "maximum memory for a layer's scratch", "metavar": "GIB"}),
    Flag(
        "--optimization-level",
        {"type": int, "help": "0 to 5; default: TensorRT's own", "metavar": "N"},
    ),
    Flag("--no-timing-cache", {"action": "store_true", "help": "measure every kernel again"}),
    Flag(
        "--hardware-compatibility",
        {"choices": HARDWARE_COMPATIBILITY, "default": "none", "help": "other GPUs to run on"},
    ),
    Flag("--version-compatible", {"action": "store_true", "help": "loadable by later TensorRT too"}),
    Flag(
        "--detailed",
        {"action": "store_true", "help": "keep layer descriptions in the engines, for tools"},
    ),
)


def options_from_request(request: BuildRequest) -> TensorRtOptions:
    """TensorRtOptions from a build request. InputError for an unsupported device or invalid flags."""
    if request.device == "cpu":
        raise InputError("device is 'cpu'; TensorRT engines are for GPUs: leave --device out.")
    flag = request.flags.get
    workspace = flag("workspace")
    return TensorRtOptions(
        networks=request.networks,
        motions=request.motions,
        refit=False if flag("no_refit") else None,
        weight_stripped=flag("weight_stripped", False),
        weight_streaming=flag("weight_streaming", False),
        profiles=tuple(map(ShapeRange.parse, flag("profile", ()))),
        workspace_bytes=None if workspace is None else int(workspace * 2**30),
        optimization_level=flag("optimization_level"),
        timing_cache=not flag("no_timing_cache"),
        hardware_compatibility=flag("hardware_compatibility", "none"),
        version_compatible=flag("version_compatible", False),
        detailed=flag("detailed", False),
        device=parse_device(request.device) or 0,
    )
