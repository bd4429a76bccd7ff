# SPDX-License-Identifier: Apache-2.0
"""Limits of `lamp-trt verify`, each with its reason.

fp32: both sides compute the same sums in another order, so a limit is the largest difference that was
measured, with a margin. Figures named "official" are those of the official implementation in fp32 against
itself in float64, or reordered. Lower precisions: the network amplifies rounding by an unknown factor, so the
limit is relative to PyTorch at the same precision, the yardstick.
"""

from dataclasses import dataclass

from lamp_trt.engine.families import LAMP, SDXL

YARDSTICK = 2.0
"""fp16, bf16: the distance to PyTorch in fp32 may be this many times that of PyTorch in the same
precision."""

ONNX_RUNTIME_YARDSTICK = 3.5
"""Factor without a checkpoint: fp16 is then compared with ONNX Runtime on a CPU, which keeps more in fp32.
On the same graphs PyTorch's distance was 1.0 to 1.8 times ONNX Runtime's (toy networks, all eight), so
that twice PyTorch's is this many times ONNX Runtime's."""

YARDSTICK_DB = 6.02
"""YARDSTICK for a clip's PSNR in dB: 20 log10(2)."""


@dataclass(frozen=True)
class Limit:
    """Limits of a tensor. max_abs is in units of max(1, largest |expected|): CLIP's hidden states reach
    30, an image 1."""

    max_abs: float
    rel_l2: float


FP32_NETWORK = Limit(max_abs=5e-5, rel_l2=1e-5)
"""Networks that FP32_NETWORKS does not name. Official VAE: 2.4e-6 and 1.0e-6."""

FP32_NETWORKS = {
    LAMP.unet: Limit(max_abs=2e-5, rel_l2=5e-6),
    "vae_decoder": Limit(max_abs=5e-5, rel_l2=1e-4),
    "sdxl_vae_decoder": Limit(max_abs=5e-5, rel_l2=1e-4),
}
"""LAMP UNet, official: 2.2e-6 and 3.6e-7; measured 1.6e-6 relative at widths (64, 128, 256, 256) and
40x64. Decoders: max_abs decides, a level is 7.8e-3; a nearly grey picture has a small norm, of which
2.3e-6 was 2.4e-5."""

FP32_NETWORKS_CHANNELS_LAST = FP32_NETWORKS | {
    LAMP.unet: Limit(max_abs=4e-5, rel_l2=1e-5),
    SDXL.unet: Limit(max_abs=5e-5, rel_l2=2.5e-5),
}
"""Backends other than ONNX Runtime, whose convolutions may sum channels-last. In the toy's UNets convolutions
cancel a bias of 16 down to 4, which amplifies the order of sums: PyTorch itself with weights channels-last is
5.6e-6 (LAMP) and 1.2e-5 (SDXL) from its plain layout, and so is OpenVINO. ONNX Runtime sums in the plain
layout's order and is 1.9e-6 from it."""


def fp32_limit(network: str, plain_layout: bool) -> Limit:
    """The limit of a network in fp32. plain_layout: whether its backend sums in PyTorch's plain layout."""
    limits = FP32_NETWORKS if plain_layout else FP32_NETWORKS_CHANNELS_LAST
    return limits.get(network, FP32_NETWORK)


FP32_TEACHER_FORCED = Limit(max_abs=2e-4, rel_l2=1e-4)
"""One step from the reference's latents: a UNet at its limit, amplified by guidance, 5e-6 * 12.5 *
sqrt(2). Official: 1.2e-5 and 4.9e-6. Measured up to 3.0e-5 relative in the long steps of a toy loop of
four."""

FP32_FREE_RUNNING = Limit(max_abs=4e-4, rel_l2=2e-4)
"""Each side from its own latents: errors of steps add up, and each step damps some. Official, 10 and 50
steps: 2.9e-5 and 7.3e-6. Measured up to 3.0e-5 relative."""

FP32_CLIP_EQUAL_SHARE, FP32_CLIP_PSNR_DB = 0.99, 50.0
"""Frames. Truncation turns a difference of 1e-5 into one level, and histogram matching one level into many
where a histogram is narrow (18 were measured, in 0.2 % of the values), so that the levels have no
limit. Official: 99.93 % equal. 1 % of the values off by 8 levels give 50 dB. Measured 62.9 dB and more."""
