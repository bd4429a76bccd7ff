# SPDX-License-Identifier: Apache-2.0
"""Tables of the study's results."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import amount, percent, seconds, small
from lamp_trt.benchmarks.report.tables import Table
from lamp_trt.engine.backends.registry import find_backend

Values = Mapping[str, Any]

_ROWS = {
    "lamp_unet": ("a step of the LAMP UNet", "bf16"),
    "lamp_unet-fp32": ("the same in fp32", "fp32"),
    "sdxl_unet": ("a step of SDXL's UNet", "bf16"),
    "vae_decoder": ("the VAE's decoder", "bf16"),
    "sdxl_vae_decoder": ("SDXL's VAE decoder", "fp32"),
}
"""Part → its name, and the arithmetic that its network has."""

_STAGES = {
    "make_first_frame": "first frame by SDXL, 1 step",
    "denoise": "LAMP's step",
    "decode": "decoding of the frames",
    "total": "in total",
}
_VIDEOS = {"video-from-image": "from an image", "video-from-text": "from text"}


def networks_table(values: Values) -> Table:
    parts = values["parts"]
    rows = []
    for name, (title, precision) in _ROWS.items():
        figures = parts[name]
        if figures is None:
            continue
        floor = figures["flops"] / parts["limits"][precision]
        peer = parts.get(f"{name}-pytorch")
        rows.append(
            [
                title,
                seconds(figures["wall_s"]),
                f"{figures['cpu_s']:.0f} s",
                percent(floor / figures["wall_s"]),
                amount(figures["peak_bytes"], "B"),
                seconds(figures["load_s"]),
                seconds(peer["wall_s"]) if peer else "",
                f"{peer['cpu_s']:.0f} s" if peer else "",
                amount(peer["peak_bytes"], "B") if peer else "",
                small(peer["rel_l2"]) if peer else "",
                _to_fp32(peer or {}),
            ]
        )
    limits = ", ".join(f"{amount(rate, 'FLOP/s')} in {name}" for name, rate in parts["limits"].items())
    note = (
        f"{_where(values)}. Measured matrix products: {limits}; share: of that. Bundle and PyTorch's modules "
        "(official formulation) in bf16; SDXL's VAE in fp32 in both. Distance: relative L2 between them, and "
        "ours and PyTorch's to our network in fp32."
    )
    header = ("", "time", "CPU", "share", "peak", "loading")
    peer_header = ("PyTorch", "its CPU", "its peak", "distance", "to fp32")
    return Table("Full size", (*header, *peer_header), rows, note, frozenset({0}))


def _to_fp32(peer: Values) -> str:
    """Ours and PyTorch's distance."""
    return (
        ", ".join(small(peer["to_fp32"][whose]) for whose in ("ours", "pytorch")) if "to_fp32" in peer else ""
    )


def videos_table(values: Values) -> Table:
    rows = []
    for part, title in _VIDEOS.items():
        figures = values["parts"][part]
        if figures is not None:
            times = [seconds(figures["timings"][s]) if s in figures["timings"] else "" for s in _STAGES]
            rows.append([title, *times, amount(figures["peak_bytes"], "B")])
    header = ("a video of 1 step", *_STAGES.values(), "peak")
    return Table("Videos of full size", header, rows, f"{_where(values)}.", frozenset({0}))


def _where(values: Values) -> str:
    machine, backend = values["machine"], find_backend(values["parts"]["lamp_unet"]["backend"])
    return (
        f"Seeded weights of the published size, 16 frames of 512x320, on {machine['cpu_threads']} threads of "
        f"{machine['cpu']}; {backend.title} {machine['versions'].get(backend.packages[0], '')}, "
        f"PyTorch {machine['versions'].get('torch', '')}"
    )
