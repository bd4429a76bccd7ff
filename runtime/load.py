# SPDX-License-Identifier: Apache-2.0
"""Loading of a bundle into a pipeline, on the requested device and backend."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeVar

from lamp_trt.engine.backends.backend import Residence, parse_device
from lamp_trt.engine.backends.contract import DeviceEngine, Engine
from lamp_trt.engine.backends.cpu import CpuPrecision, why_no_bf16
from lamp_trt.engine.backends.registry import (
    check_residence,
    choose_backend,
    device_engine,
    faster_backend,
    find_backend,
    host_engine,
)
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, LAMP, SAFETY_CHECKER, SDXL, VIDEO_NETWORKS
from lamp_trt.engine.memory import memory_bytes
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.runtime.algorithm.config import file_path, plain_text, truth_value
from lamp_trt.runtime.cuda.device import CudaDevice
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.image_ops import CudaImageOps
from lamp_trt.runtime.cuda.ops import CudaVideoOps
from lamp_trt.runtime.first_frame import FirstFrameMaker, first_frame_maker, missing_networks
from lamp_trt.runtime.host.engines import HostEngines, Turns, fit_together
from lamp_trt.runtime.host.ops import HostImageOps, HostVideoOps
from lamp_trt.runtime.host.safety import HostSafetyNetwork
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from lamp_trt.runtime.ops import ImageOps, VideoOps
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.requests import Placement

log = logging.getLogger("lamp_trt")

AnyOps = TypeVar("AnyOps", CudaVideoOps, CudaImageOps)


@dataclass(frozen=True)
class Place:
    """Resolved placement of a bundle's networks.

    ordinal: CUDA device, None for the CPU. backend: a name, not "auto".
    """

    ordinal: int | None
    backend: str
    num_threads: int | None = None
    engine_dir: Path | None = None
    resident_motions: Residence = "mapped"
    cpu_precision: CpuPrecision | None = None

    @classmethod
    def of(cls, bundle: Bundle, asked: Placement) -> "Place":
        """Resolve `asked` for this bundle and machine.

        Raises InputError for a missing folder, unknown names and invalid combinations, EngineError if no
        backend can use the GPU.
        """
        folder, threads = asked.engine_dir, asked.num_threads
        if folder is not None and not folder.is_dir():
            raise InputError(f"engine_dir is {str(folder)!r}, not a folder; build the engines into it.")
        ordinal = parse_device(asked.device)
        if ordinal is not None and threads is not None:
            raise InputError(f"num_threads is {threads}, but on a GPU nothing uses it: leave it out.")
        chosen = choose_backend(ordinal, asked.backend, bundle, folder, asked.cpu_precision)
        check_residence(chosen, asked.resident_motions)
        place = cls(ordinal, chosen, threads, folder, asked.resident_motions, asked.cpu_precision)
        log.info("%s", place)
        if asked.backend == "auto" and (missing := faster_backend(ordinal, chosen, bundle)):
            log.info("%s", missing)
        place._tell_of_widening(bundle)
        return place

    def _tell_of_widening(self, bundle: Bundle) -> None:
        halves = any(network.precision == "bf16" for network in bundle.manifest.networks.values())
        if not (halves and self.ordinal is None and find_backend(self.backend).cpu_precisions):
            return
        if self.cpu_precision == "fp32":
            log.info("weights in bf16 are widened to fp32, which takes twice their size more memory")
        elif self.cpu_precision is None and (reason := why_no_bf16()):
            log.warning("%s: weights in bf16 are widened to fp32 and computed with in fp32", reason)

    def __str__(self) -> str:
        return f"{self.backend} on {'the CPU' if self.ordinal is None else f'cuda:{self.ordinal}'}"

    def host_engine(self, bundle: Bundle, network: str, motion: str | None = None) -> Engine:
        return host_engine(
            self.backend,
            bundle,
            network,
            motion=motion,
            num_threads=self.num_threads,
            engine_dir=self.engine_dir,
            cpu_precision=self.cpu_precision,
        )

    def engine_set(self, bundle: Bundle, motion: str | None = None) -> EngineSet:
        """An empty EngineSet on this device for the bundle's networks. motion: the LAMP UNet's first one."""
        assert self.ordinal is not None
        device = CudaDevice(self.ordinal)

        def load(network: str) -> DeviceEngine:
            return device_engine(
                self.backend,
                bundle,
                network,
                device=device.ordinal,
                stream=device.stream,
                motion=motion if network == LAMP.unet else None,
                engine_dir=self.engine_dir,
                resident_motions=self.resident_motions,
            )

        return EngineSet(device, load)


def load_pipeline(
    bundle: str | PathLike[str],
    placement: Placement = Placement(),
    *,
    motion: str | None = None,
    expect_bundle: str | None = None,
    verify_files: bool = False,
) -> LampPipeline:
    """Open a bundle and load its networks; see `lamp_trt.load`."""
    opened = Bundle.open(
        file_path("bundle", bundle),
        verify="full" if truth_value("verify_files", verify_files) else "stat",
        expect_digest=None if expect_bundle is None else plain_text("expect_bundle", expect_bundle),
    )
    motion = _first_motion(opened, motion)
    place = Place.of(opened, placement)
    load_ops = _host_ops if place.ordinal is None else _cuda_ops
    with ExitStack() as failed:
        ops, first_frames = load_ops(opened, place, motion)
        failed.callback(ops.close)
        tokenizer = load_tokenizer(opened.tokenizer_folder("tokenizer"), opened.manifest.sizes["tokens"])
        opened.check_unchanged()
        failed.pop_all()
    return LampPipeline(opened, ops, tokenizer, motion, first_frames, place.cpu_precision, str(place))


def load_first_frame_maker(bundle: Bundle, placement: Placement = Placement()) -> FirstFrameMaker:
    """A maker of first frames from an open bundle; SDXL's networks are loaded when the first image is made.

    Raises BundleError if the bundle lacks any of them, and errors as Place.of. The first image raises
    BundleError if the bundle changed since it was opened, EngineError if a network cannot be loaded.
    """
    place = Place.of(bundle, placement)
    load_images = _host_image_ops if place.ordinal is None else _cuda_image_ops
    return first_frame_maker(bundle, partial(load_images, bundle, place), place.cpu_precision)


def _host_ops(bundle: Bundle, place: Place, motion: str) -> tuple[VideoOps, FirstFrameMaker | None]:
    names = (*VIDEO_NETWORKS, *precompute_networks(bundle.manifest, LAMP.unet))
    safety = _host_safety(bundle, place)
    if missing_networks(bundle):
        engines = HostEngines("LAMP", names, partial(_host_engine, bundle, place), None, motion)
        return HostVideoOps(bundle.manifest, engines.loaded(), safety=safety), None
    turns = _host_turns(bundle, place, (*names, *_image_networks(bundle)))
    maker = first_frame_maker(
        bundle, partial(_host_image_ops, bundle, place, safety, turns), place.cpu_precision
    )
    engines = HostEngines("LAMP", names, partial(_host_engine, bundle, place), turns, motion)
    return HostVideoOps(bundle.manifest, engines.loaded(), lambda: maker.ops, safety), maker


def _host_engine(bundle: Bundle, place: Place, network: str, motion: str | None) -> Engine:
    engine = place.host_engine(bundle, network, motion)
    _check_networks(bundle, (network,))
    if motion is not None:
        bundle.check_unchanged([bundle.motion(motion).file])
    return engine


def _host_turns(bundle: Bundle, place: Place, networks: tuple[str, ...]) -> Turns | None:
    """The Turns of LAMP's and SDXL's networks, None if the memory holds both."""
    _, available = memory_bytes()
    if fit_together(bundle.manifest, networks, available, place.cpu_precision):
        return None
    log.info(
        "%.1f GB of memory are available: SDXL's and LAMP's networks are loaded in turn", available / 1e9
    )
    return Turns()


def _host_safety(bundle: Bundle, place: Place) -> HostSafetyNetwork | None:
    """The safety checker, loaded when it is first used; None for a bundle without one."""
    if bundle.manifest.safety is None:
        return None

    def load() -> Engine:
        engine = place.host_engine(bundle, SAFETY_CHECKER)
        _check_networks(bundle, (SAFETY_CHECKER,))
        return engine

    return HostSafetyNetwork(load)


def _cuda_ops(bundle: Bundle, place: Place, motion: str) -> tuple[VideoOps, FirstFrameMaker | None]:
    ops = _on_device(partial(CudaVideoOps, bundle.manifest), place.engine_set(bundle, motion))
    return ops, None if missing_networks(bundle) else first_frame_maker(bundle, ops.images)


def _host_image_ops(
    bundle: Bundle, place: Place, safety: HostSafetyNetwork | None = None, turns: Turns | None = None
) -> ImageOps:
    """safety, turns: those of the pipeline that they belong to."""
    networks = _image_networks(bundle)
    load = partial(_host_engine, bundle, place)
    engines = HostEngines("SDXL", networks, load, turns).loaded()
    return HostImageOps(bundle.manifest, engines, safety or _host_safety(bundle, place))


def _cuda_image_ops(bundle: Bundle, place: Place) -> ImageOps:
    ops = _on_device(partial(CudaImageOps, bundle.manifest), place.engine_set(bundle))
    _check_networks(bundle, _image_networks(bundle))
    return ops


def _on_device(make: Callable[[EngineSet], AnyOps], engines: EngineSet) -> AnyOps:
    """Make operations, which own their engines and device; on an error, release both."""
    try:
        return make(engines)
    except BaseException:
        engines.close()
        engines.device.close()
        raise


def _image_networks(bundle: Bundle) -> tuple[str, ...]:
    return (*FIRST_FRAME_NETWORKS, *precompute_networks(bundle.manifest, SDXL.unet))


def _check_networks(bundle: Bundle, networks: tuple[str, ...]) -> None:
    """Raise BundleError if files of these networks changed; other files, such as motions, may be replaced."""
    bundle.check_unchanged(file for name in networks for file in bundle.network_files(name))


def _first_motion(bundle: Bundle, motion: str | None) -> str:
    """The first motion to load. Raises BundleError if the bundle cannot make videos or lacks the motion."""
    missing = [name for name in VIDEO_NETWORKS if name not in bundle.manifest.networks]
    if missing:
        raise BundleError(
            f"{bundle.path} cannot make videos, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sd DIR --motion NAME=DIR --out {bundle.path}"
        )
    motion = plain_text("motion", motion) if motion is not None else bundle.manifest.default_motion
    bundle.motion(motion)
    assert motion is not None
    return motion
