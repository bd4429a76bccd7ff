# SPDX-License-Identifier: Apache-2.0
"""Demo: make toy checkpoints, a bundle, a first frame and a video. Usage: python examples/demo.py FOLDER

It runs the `lamp-trt` command only; real checkpoints need the same steps. Existing checkpoints and up-to-date
files of the bundle are kept.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from lamp_trt.cli import main

WIDTH, HEIGHT = 1024, 640
PROMPT = "a horse runs on the road"


def draw_first_frame(path: Path) -> None:
    """Draw a road in the evening, as a substitute for an image from Stable Diffusion XL."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    sky = np.stack([250 - 0.28 * y, 170 - 0.16 * y + 0.04 * x, 150 + 0.12 * y], axis=-1)
    hills = HEIGHT * (0.52 + 0.05 * np.sin(x / 130) + 0.03 * np.sin(x / 47 + 1))
    meadow = np.stack([70 + 0.05 * x, 120 - 0.06 * (y - 320), 60 + 0 * x], axis=-1)
    picture = np.where((y > hills)[..., None], meadow, sky)
    road = np.abs(x - WIDTH * 0.5 - 0.25 * (y - HEIGHT * 0.55)) < 0.55 * (y - HEIGHT * 0.55)
    picture[road] = 95
    canvas = np.clip(picture, 0, 255).astype(np.uint8)
    cv2.circle(canvas, (760, 170), 60, (255, 225, 150), -1, cv2.LINE_AA)
    cv2.ellipse(canvas, (420, 380), (120, 60), 0, 0, 360, (120, 70, 40), -1, cv2.LINE_AA)
    for legs in (340, 385, 455, 500):
        cv2.line(canvas, (legs, 410), (legs - 20, 520), (105, 60, 35), 22, cv2.LINE_AA)
    cv2.line(canvas, (520, 360), (590, 270), (120, 70, 40), 50, cv2.LINE_AA)
    cv2.ellipse(canvas, (620, 265), (50, 24), 25, 0, 360, (120, 70, 40), -1, cv2.LINE_AA)
    if not cv2.imwrite(str(path), canvas[..., ::-1]):
        raise OSError(f"cannot write {path}")


def run(*arguments: str | Path) -> None:
    command = [str(argument) for argument in arguments]
    print("$ lamp-trt", " ".join(f"'{a}'" if " " in a else a for a in command), flush=True)
    code = main(command)
    if code:
        raise SystemExit(code)


def demo(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    checkpoints, bundle, first_frame = folder / "checkpoints", folder / "bundle", folder / "first_frame.png"
    if not checkpoints.exists():
        run("toy", checkpoints)
    motions = [f"--motion={name}={checkpoints / 'motions' / name}" for name in ("horse_run", "rain")]
    run("build", f"--sd={checkpoints / 'sd'}", *motions, f"--out={bundle}")
    draw_first_frame(first_frame)
    arguments = ["--bundle", bundle, "--motion", "horse_run", "--first-frame", first_frame]
    run("generate", PROMPT, *arguments, "--out", folder / "horse_run.mp4")


if __name__ == "__main__":
    demo(Path(sys.argv[1]))
