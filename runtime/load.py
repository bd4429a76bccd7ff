# SPDX-License-Identifier: Apache-2.0
"""From a bundle's folder to a pipeline: the networks loaded on the device and backend asked for."""

from functools import partial
from os import PathLike
from pathlib import Path

from lamp_trt.engine.backends import check_backend, host_engine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.networks import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.runtime.config import thread_count
from lamp_trt.runtime.first_frame import FirstFrameMaker, first_frame_maker, missing_networks
from lamp_trt.runtime.host_stages import HostImageStages, HostVideoStages
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.stages import ImageStages
from lamp_trt.runtime.tokenizer import load_tokenizer


def load_pipeline(
    bundle: str | PathLike[str],
    *,
    device: str = "auto",
    backend: str = "auto",
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: str | PathLike[str] | None = None,
    expect_bundle: str | None = None,
) -> LampPipeline:
    """Open a bundle and load its networks; see `lamp_trt.load`."""
    if device not in ("auto", "cpu"):
        raise InputError(f"device is {device!r}; this version runs on 'cpu' ('auto' picks it).")
    backend = check_backend("cpu", backend)
    num_threads = thread_count(num_threads)
    engines_in = None if engine_dir is None else Path(engine_dir)
    opened = Bundle.open(bundle, expect_digest=expect_bundle)
    motion = _check_video_bundle(opened, motion)
    engines = {
        name: host_engine(
            backend,
            opened,
            name,
            motion=motion if name == "lamp_unet" else None,
            num_threads=num_threads,
            engine_dir=engines_in,
        )
        for name in VIDEO_NETWORKS
    }
    tokenizer = load_tokenizer(opened.tokenizer_folder("tokenizer"), opened.manifest.sizes["tokens"])
    opened.check_unchanged()
    maker = None
    if not missing_networks(opened):
        maker = load_first_frame_maker(
            opened, backend=backend, num_threads=num_threads, engine_dir=engines_in
        )
    stages = HostVideoStages(opened.manifest, engines, None if maker is None else lambda: maker.stages)
    return LampPipeline(opened, stages, tokenizer, motion, maker)


def load_first_frame_maker(
    bundle: Bundle,
    *,
    backend: str = "auto",
    num_threads: int | None = None,
    engine_dir: Path | None = None,
) -> FirstFrameMaker:
    """The SDXL half of an open bundle; its networks are loaded when the first image is made.

    BundleError if the bundle lacks any, InputError for the other arguments; then, at the first image,
    BundleError if the bundle changed since it was opened, EngineError if a network cannot be loaded.
    """
    num_threads = thread_count(num_threads)
    backend = check_backend("cpu", backend)
    return first_frame_maker(bundle, partial(_load_image_stages, bundle, backend, num_threads, engine_dir))


def _load_image_stages(
    bundle: Bundle, backend: str, num_threads: int | None, engine_dir: Path | None
) -> ImageStages:
    engines = {
        name: host_engine(backend, bundle, name, num_threads=num_threads, engine_dir=engine_dir)
        for name in FIRST_FRAME_NETWORKS
    }
    bundle.check_unchanged()
    return HostImageStages(bundle.manifest, engines)


def _check_video_bundle(bundle: Bundle, motion: str | None) -> str:
    """The motion to begin with. BundleError if the bundle cannot make videos, or has no such motion."""
    missing = [name for name in VIDEO_NETWORKS if name not in bundle.manifest.networks]
    if missing:
        raise BundleError(
            f"{bundle.path} cannot make videos, it lacks {', '.join(missing)}. Build them into it: "
            f"lamp-trt build --sd DIR --motion NAME=DIR --out {bundle.path}"
        )
    motion = motion if motion is not None else bundle.manifest.default_motion
    bundle.motion_path(motion)
    assert motion is not None
    return motion
