# SPDX-License-Identifier: Apache-2.0
"""From a bundle's folder to a pipeline: the networks loaded on the device and backend asked for."""

import logging
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from lamp_trt.engine.backends.backend import Residence, parse_device
from lamp_trt.engine.backends.contract import DeviceEngine, Engine
from lamp_trt.engine.backends.registry import check_residence, choose_backend, device_engine, host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.networks import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.engine.precompute import networks_beside
from lamp_trt.runtime.algorithm.config import file_path, one_of, plain_text, thread_count, truth_value
from lamp_trt.runtime.cuda.device import CudaDevice
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.images import CudaImageStages
from lamp_trt.runtime.cuda.stages import CudaVideoStages
from lamp_trt.runtime.first_frame import FirstFrameMaker, first_frame_maker, missing_networks
from lamp_trt.runtime.host.stages import HostImageStages, HostVideoStages
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.stages import ImageStages, VideoStages

log = logging.getLogger("lamp_trt")


@dataclass(frozen=True)
class Placement:
    """Where a bundle's networks run, as `lamp_trt.load` is told.

    ordinal: of a CUDA device, None for the CPU. backend: a name, not "auto". Raises InputError for what does
    not exist or fit, EngineError for a GPU without anything to use it.
    """

    ordinal: int | None
    backend: str
    num_threads: int | None
    engine_dir: Path | None
    resident_motions: Residence = "mapped"

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        device: str = "auto",
        backend: str = "auto",
        num_threads: int | None = None,
        engine_dir: str | PathLike[str] | None = None,
        resident_motions: Residence = "mapped",
    ) -> "Placement":
        """Of arguments as the user gave them."""
        folder = None if engine_dir is None else file_path("engine_dir", engine_dir)
        if folder is not None and not folder.is_dir():
            raise InputError(f"engine_dir is {str(folder)!r}, which is no folder; build the engines into it.")
        threads = thread_count(num_threads)
        device, backend = plain_text("device", device), plain_text("backend", backend)
        ordinal = parse_device(device)
        if ordinal is not None and threads is not None:
            raise InputError(f"num_threads is {threads}, but on a GPU nothing uses it: leave it out.")
        chosen = choose_backend(ordinal, backend, bundle, folder)
        resident_motions = one_of("resident_motions", resident_motions, Residence)
        check_residence(chosen, resident_motions)
        place = cls(ordinal, chosen, threads, folder, resident_motions)
        log.info("%s", place)
        return place

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
        )

    def engine_set(self, bundle: Bundle, motion: str | None = None) -> EngineSet:
        """An empty one on this device, for the bundle's networks. The LAMP UNet begins with `motion`."""
        assert self.ordinal is not None
        device = CudaDevice(self.ordinal)

        def load(network: str) -> DeviceEngine:
            return device_engine(
                self.backend,
                bundle,
                network,
                device=device.ordinal,
                stream=device.stream,
                motion=motion if network == "lamp_unet" else None,
                engine_dir=self.engine_dir,
                resident_motions=self.resident_motions,
            )

        return EngineSet(device, load)


def load_pipeline(
    bundle: str | PathLike[str],
    *,
    device: str = "auto",
    backend: str = "auto",
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: str | PathLike[str] | None = None,
    resident_motions: Residence = "mapped",
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
    place = Placement.of(opened, device, backend, num_threads, engine_dir, resident_motions)
    load_stages = _host_stages if place.ordinal is None else _cuda_stages
    stages, first_frames = load_stages(opened, place, motion)
    tokenizer = load_tokenizer(opened.tokenizer_folder("tokenizer"), opened.manifest.sizes["tokens"])
    opened.check_unchanged()
    return LampPipeline(opened, stages, tokenizer, motion, first_frames)


def load_first_frame_maker(
    bundle: Bundle,
    *,
    device: str = "auto",
    backend: str = "auto",
    num_threads: int | None = None,
    engine_dir: str | PathLike[str] | None = None,
) -> FirstFrameMaker:
    """The SDXL half of an open bundle alone; its networks are loaded when the first image is made.

    BundleError if the bundle lacks any, and as Placement raises. At the first image: BundleError if the
    bundle changed since it was opened, EngineError if a network cannot be loaded.
    """
    place = Placement.of(bundle, device, backend, num_threads, engine_dir)
    load_images = _host_image_stages if place.ordinal is None else _cuda_image_stages
    return first_frame_maker(bundle, partial(load_images, bundle, place))


def _host_stages(bundle: Bundle, place: Placement, motion: str) -> tuple[VideoStages, FirstFrameMaker | None]:
    engines = {
        name: place.host_engine(bundle, name, motion if name == "lamp_unet" else None)
        for name in (*VIDEO_NETWORKS, *networks_beside(bundle.manifest, "lamp_unet"))
    }
    if missing_networks(bundle):
        return HostVideoStages(bundle.manifest, engines, None), None
    maker = first_frame_maker(bundle, partial(_host_image_stages, bundle, place))
    return HostVideoStages(bundle.manifest, engines, lambda: maker.stages), maker


def _cuda_stages(bundle: Bundle, place: Placement, motion: str) -> tuple[VideoStages, FirstFrameMaker | None]:
    stages = CudaVideoStages(bundle.manifest, place.engine_set(bundle, motion))
    if missing_networks(bundle):
        return stages, None
    return stages, first_frame_maker(bundle, stages.image_stages)


def _host_image_stages(bundle: Bundle, place: Placement) -> ImageStages:
    networks = (*FIRST_FRAME_NETWORKS, *networks_beside(bundle.manifest, "sdxl_unet"))
    engines = {name: place.host_engine(bundle, name) for name in networks}
    _check_networks(bundle, networks)
    return HostImageStages(bundle.manifest, engines)


def _cuda_image_stages(bundle: Bundle, place: Placement) -> ImageStages:
    stages = CudaImageStages(bundle.manifest, place.engine_set(bundle))
    _check_networks(bundle, (*FIRST_FRAME_NETWORKS, *networks_beside(bundle.manifest, "sdxl_unet")))
    return stages


def _check_networks(bundle: Bundle, networks: tuple[str, ...]) -> None:
    """BundleError if these were loaded from files that changed; a motion may have been replaced meanwhile."""
    bundle.check_unchanged(file for name in networks for file in bundle.network_files(name))


def _first_motion(bundle: Bundle, motion: str | None) -> str:
    """The motion to begin with. BundleError if the bundle cannot make videos, or has no such motion."""
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
