# SPDX-License-Identifier: Apache-2.0
"""Everything that compare.py compares, made by the lamp_trt that is on the path: python workload.py FOLDER

Takes nothing of the package but its command line and `lamp_trt.load`, which every revision has.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lamp_trt
from lamp_trt.cli import main

PROMPT = "a horse runs on the road"
BUNDLES = {
    "fp32": ("--precision=fp32",),
    "fp16-hoisted": ("--precision=fp16", "--hoist=text,time,prefix"),
}
SIZE = ("--height=64", "--width=64", "--frames=4")
SHORT: dict[str, Any] = {"num_inference_steps": 3, "adain_switch_step": 1, "motion": "horse_run"}


def command(*arguments: object) -> None:
    code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"lamp-trt {arguments[0]} ended with {code}")


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with an edge, uint8 RGB (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [255 * y / height, 127 + 100 * np.sin(x / 9), np.where(x > y, 220, 30)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def write_images(folder: Path) -> None:
    """First frames: of the video's size, of another aspect ratio, a JPEG, one with transparent pixels."""
    from PIL import Image

    folder.mkdir()
    Image.fromarray(picture(64, 64)).save(folder / "same.png")
    Image.fromarray(picture(80, 120)).save(folder / "wide.png")
    jpeg = io.BytesIO()
    Image.fromarray(picture(80, 120)).save(jpeg, "JPEG", quality=90)
    (folder / "photo.jpg").write_bytes(jpeg.getvalue())
    alpha = np.full((80, 120, 1), 255, np.uint8)
    alpha[:40] = 64
    Image.fromarray(np.concatenate([picture(80, 120), alpha], axis=-1)).save(folder / "transparent.png")


def videos(images: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name → (suffix of the file, arguments of the pipeline). In this order: motions are switched between."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((1, 4, 4, 8, 8), np.float32)
    given = {**SHORT, "first_frame": images / "wide.png"}

    def halved(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] / 2} if step == 1 else {}

    return {
        "defaults": (".mp4", {"first_frame": images / "same.png"}),
        "official": (".gif", {**given, "seed": 3}),
        "other_motion": (".webp", {**given, "motion": "rain"}),
        "first_motion_again": ("", given),
        "paper": (".mp4", {**given, "preset": "paper", "seed": 2**64 - 1}),
        "paper_defaults": (".mp4", {"first_frame": images / "same.png", "preset": "paper"}),
        "paper_noises": (
            "",
            {**given, "preset": "paper", "noise": noise, "base_noise": noise[:, :, :1]},
        ),
        "unguided": ("", {**given, "guidance_scale": 1.0}),
        "negative_guidance": ("", {**given, "guidance_scale": -2.0}),
        "negative_prompt": ("", {**given, "negative_prompt": "rain, blurred"}),
        "adain_none": ("", {**given, "adain": "none"}),
        "adain_first_frame": ("", {**given, "adain": "first_frame"}),
        "adain_never_switches": ("", {**given, "adain_switch_step": 3}),
        "adain_switches_at_once": ("", {**given, "adain_switch_step": 0}),
        "histogram_none": ("", {**given, "histogram": "none"}),
        "histogram_exact": ("", {**given, "histogram": "exact"}),
        "callback": ("", {**given, "callback_on_step_end": halved}),
        "noise": ("", {**given, "noise": noise, "posterior_noise": np.zeros((1, 4, 8, 8), np.float32)}),
        "editing": ("", {**given, "noise": noise, "mix_noise": False}),
        "cropped": ("", {**given, "fit": "crop"}),
        "padded": ("", {**given, "fit": "pad"}),
        "jpeg": ("", {**given, "first_frame": images / "photo.jpg"}),
        "transparent": ("", {**given, "first_frame": images / "transparent.png"}),
        "array": ("", {**given, "first_frame": picture(64, 64)}),
        "text": (".mp4", {**SHORT, "first_frame_num_inference_steps": 2, "seed": 5}),
        "text_of_its_own": (
            "",
            {**SHORT, "first_frame_prompt": "a grey horse", "first_frame_num_inference_steps": 2},
        ),
        "text_unguided": (
            "",
            {**SHORT, "first_frame_num_inference_steps": 2, "first_frame_guidance_scale": 1.0},
        ),
        "text_negative_prompt": (
            "",
            {**SHORT, "first_frame_num_inference_steps": 2, "negative_prompt": "blurred"},
        ),
    }


def make_videos(bundle: Path, images: Path, out: Path) -> None:
    """A video file with its sidecar, its arrays and the names of its timings, for each of `videos`.

    On ONNX Runtime, which every revision has: another backend sums in another order.
    """
    out.mkdir()
    pipe = lamp_trt.load(bundle, backend="onnxruntime", num_threads=1)
    for name, (suffix, arguments) in videos(images).items():
        video = pipe(PROMPT, **arguments)
        video.save(out / f"{name}{suffix}")
        arrays = {"frames": video.frames, "latents": video.latents, "first_frame": video.first_frame}
        np.savez(out / f"{name}.npz", **arrays)
        (out / f"{name}.timings.json").write_text(json.dumps({"order": list(video.timings)}))
    first = pipe.make_first_frame(PROMPT, num_inference_steps=2, seed=9)
    first.save(out / "make_first_frame.png")
    np.savez(out / "make_first_frame.npz", image=first.image, latents=first.latents)


def run(folder: Path) -> None:
    toy, images = folder / "toy", folder / "images"
    command("toy", toy)
    write_images(images)
    motions = [f"--motion={name}={toy / 'motions' / name}" for name in ("horse_run", "rain")]
    for name, options in BUNDLES.items():
        checkpoints = (f"--sd={toy / 'sd'}", f"--sdxl={toy / 'sdxl'}", *motions)
        command("build", *checkpoints, *SIZE, *options, f"--out={folder / 'bundles' / name}")
    make_videos(folder / "bundles" / "fp32", images, folder / "videos")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
