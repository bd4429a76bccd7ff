# SPDX-License-Identifier: Apache-2.0
"""Small bundles for the tests of the bundle's reader and writer."""

import dataclasses
import hashlib
from pathlib import Path

from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, MotionEntry, NetworkEntry
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.networks import IOTensor

FIRST = {
    "lamp_unet.onnx": b"graph 1",
    "weights/unet.safetensors": b"weights 1" * 1000,
    "motions/horse_run.safetensors": b"horse",
    "tokenizer/vocab.json": b"{}",
}
"""A bundle's files. In SECOND one is as before, one is gone, one is new and the others have changed."""
SECOND = {
    "lamp_unet.onnx": b"graph 2",
    "weights/unet.safetensors": b"weights 2" * 1200,
    "motions/rain.safetensors": b"rain",
    "tokenizer/vocab.json": b"{}",
}


def key_of(data: bytes) -> str:
    return hashlib.sha256(b"key of " + data).hexdigest()


def manifest_of(files: dict[str, FileEntry]) -> Manifest:
    motions = {
        Path(path).stem: MotionEntry(path, "motion", "0" * 64)
        for path in files
        if path.startswith("motions/")
    }
    return Manifest(
        networks={
            "lamp_unet": NetworkEntry(
                "lamp_unet.onnx",
                "unet",
                "fp32",
                (IOTensor("sample", (2, 4, 2, 8, 8), "float32"), IOTensor("timestep", (1,), "float32")),
                (IOTensor("noise_pred", (2, 4, 2, 8, 8), "float32"),),
            )
        },
        sizes={"height": 64, "width": 64, "num_frames": 2},
        scheduler={"beta_start": 0.00085, "clip_sample": False, "trained_betas": None},
        scaling_factors={"vae": 0.18215},
        tokenizers={"tokenizer": {"folder": "tokenizer", "max_length": 77, "pad_token": "<|endoftext|>"}},
        motions=motions,
        default_motion=min(motions),
        files=files,
    )


def build(path: Path, contents: dict[str, bytes]) -> list[str]:
    """What a build does: make the files that are not there yet, commit. Returns those that were made."""
    made = []
    with BundleWriter(path) as writer:
        for relative, data in contents.items():
            if not writer.have(relative, key_of(data)):
                with writer.create(relative, key_of(data)) as file:
                    file.write(data[:3])
                    file.write(data[3:])
                made.append(relative)
        writer.commit(manifest_of(writer.files))
    return made


def add_motion(path: Path, name: str, data: bytes) -> None:
    with BundleWriter(path) as writer:
        old = writer.manifest
        assert old is not None
        relative = f"motions/{name}.safetensors"
        with writer.create(relative, key_of(data)) as file:
            file.write(data)
        motions = {**old.motions, name: MotionEntry(relative, "motion", "1" * 64)}
        writer.commit(dataclasses.replace(old, motions=motions, files={**old.files, **writer.files}))


def remove_motion(path: Path, name: str) -> None:
    with BundleWriter(path) as writer:
        old = writer.manifest
        assert old is not None
        gone = old.motions.get(name)
        motions = {key: value for key, value in old.motions.items() if key != name}
        files = {key: value for key, value in old.files.items() if gone is None or key != gone.file}
        writer.commit(dataclasses.replace(old, motions=motions, files=files))


def tree(path: Path) -> dict[str, bytes]:
    """Every file of a bundle but its lock, with its bytes."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
