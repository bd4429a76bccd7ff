# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet's operations by formula, layer by layer, independent of any graph."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

TOKENS = 77


@dataclass
class LampFlops:
    """Adds up the products of one forward, by kind of layer, in `flops`; a multiply-add is 2.

    official: two outputs too many in conv1d, keys and values of every frame. hoisted: of "text", "time" and
    "prefix", what is not computed, or once instead of twice.
    """

    frames: int
    height: int
    width: int
    text_width: int
    official: bool = False
    hoisted: Collection[str] = ()
    batch: int = 2

    def __post_init__(self) -> None:
        self.flops: Counter[str] = Counter()
        self.now = 1 if "prefix" in self.hoisted else self.batch  # videos, until the text enters
        self.time_rows = 0 if "time" in self.hoisted else self.now

    def unet(self, widths: Sequence[int], attention: Sequence[bool], layers: int = 2) -> int:
        """Of a UNet with `widths`, levels with attention as given; the sum of `flops`."""
        time_width, sizes = 4 * widths[0], [(self.height, self.width)]
        self.flops["time"] += 2 * self.time_rows * (widths[0] * time_width + time_width**2)
        self.time_width = time_width
        self.inflated(4, widths[0], 9, sizes[0])
        x, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(layers):
                self.resnet(x, width, sizes[-1])
                if attention[level]:
                    self.transformer(width, sizes[-1])
                x = width
                skips.append(x)
            if level < len(widths) - 1:
                height, width_ = sizes[-1]
                sizes.append(((height + 1) // 2, (width_ + 1) // 2))
                self.inflated(x, x, 9, sizes[-1])
                skips.append(x)
        self.resnet(x, x, sizes[-1])
        self.transformer(x, sizes[-1])
        self.resnet(x, x, sizes[-1])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(layers + 1):
                self.resnet(x + skips.pop(), width, sizes[level])
                if attention[level]:
                    self.transformer(width, sizes[level])
                x = width
            if level:
                self.inflated(x, x, 9, sizes[level - 1])
        self.inflated(x, 4, 9, sizes[0])
        return self.flops.total()

    def inflated(self, inputs: int, outputs: int, taps: int, size: tuple[int, int]) -> None:
        area, frames = size[0] * size[1], self.now * self.frames
        self.flops["conv2d"] += 2 * frames * area * inputs * outputs * taps
        self.flops["conv_gate"] += 2 * frames * area * outputs * 9
        convolved = self.now * (self.frames + 2 * self.official)
        self.flops["conv1d"] += 2 * convolved * area * outputs**2 * 3

    def resnet(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        self.inflated(inputs, outputs, 9, size)
        self.inflated(outputs, outputs, 9, size)
        if inputs != outputs:
            self.inflated(inputs, outputs, 1, size)
        self.flops["time"] += 2 * self.time_rows * self.time_width * outputs

    def transformer(self, width: int, size: tuple[int, int]) -> None:
        area = size[0] * size[1]
        videos, repeated = self.now, self.frames if self.official else 1
        square = 2 * self.frames * area * width**2  # one projection of all tokens of a video
        self.flops["proj"] += videos * square
        self.flops["attn1"] += videos * (2 * square + 2 * square * repeated // self.frames)
        self.flops["attn1"] += videos * 4 * self.frames * area * area * width
        self.flops["attn2"] += videos * square  # to_q
        self.now = videos = self.batch
        self.flops["attn2"] += videos * (square + 4 * self.frames * area * TOKENS * width)
        if "text" not in self.hoisted:
            self.flops["attn2"] += videos * 4 * repeated * TOKENS * self.text_width * width
        self.flops["ff"] += videos * 12 * square
        self.flops["attn_temp"] += videos * (4 * square + 4 * area * self.frames**2 * width)
        self.flops["proj"] += videos * square
