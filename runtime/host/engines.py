# SPDX-License-Identifier: Apache-2.0
"""Engines of one family of networks on the host, and whether two families fit the memory together."""

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Self

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.backends.cpu import CpuPrecision, arithmetic
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import LAMP

log = logging.getLogger("lamp_trt")

Load = Callable[[str, str | None], Engine]

MEMORY_PER_WEIGHT = 3
"""Memory of a loaded network over its weights' bytes: the mapped file, a copy in the kernels' layout, and as
much again for activations and for what loading takes."""


class Turns:
    """Families of which one at a time keeps its engines: the memory does not hold both."""

    def __init__(self) -> None:
        self._holder: HostEngines | None = None

    def take(self, engines: "HostEngines") -> None:
        """Make `engines` the holder; the previous one releases its engines and loads them again when used."""
        if self._holder is not None and self._holder is not engines:
            log.info("releasing %s to make room for %s", self._holder, engines)
            self._holder.release()
        self._holder = engines


class HostEngines:
    """Engines by network, each loaded when it is first used.

    load   (network, motion) → Engine; motion is None unless the network is the LAMP UNet
    turns  shared with the other family where only one fits the memory; None: both are kept
    """

    def __init__(
        self, title: str, names: Collection[str], load: Load, turns: Turns | None, motion: str | None = None
    ) -> None:
        self._title, self._names, self._load, self._turns = title, names, load, turns
        self._motion, self._closed = motion, False
        self._engines: dict[str, Engine] = {}

    def __str__(self) -> str:
        return f"{self._title}'s networks"

    def __contains__(self, network: str) -> bool:
        return network in self._names

    def __getitem__(self, network: str) -> Engine:
        """The engine. InputError after `close`, EngineError if it cannot be loaded."""
        if self._closed:
            raise InputError(f"{self} were closed; load the bundle again.")
        if self._turns is not None:
            self._turns.take(self)
        if network not in self._engines:
            self._engines[network] = self._load(network, self._motion if network == LAMP.unet else None)
        return self._engines[network]

    def loaded(self) -> Self:
        """Load all of them now."""
        try:
            for network in self._names:
                self[network]
        except BaseException:
            self.release()
            raise
        return self

    def set_motion(self, motion: str) -> None:
        """Switch the LAMP UNet, which otherwise is loaded with this motion."""
        if LAMP.unet in self._engines:
            self._engines[LAMP.unet].set_motion(motion)
        self._motion = motion

    def release(self) -> None:
        """Give the memory back; an engine is loaded again when it is used."""
        while self._engines:
            _, engine = self._engines.popitem()
            engine.close()

    def close(self) -> None:
        self._closed = True
        self.release()


def fit_together(
    manifest: Manifest, networks: Iterable[str], available: int, cpu_precision: CpuPrecision | None
) -> bool:
    """Whether engines of all these networks fit `available` bytes. Weights of 2 bytes that are computed with
    in fp32 count twice."""
    sizes = {}
    for entry in map(manifest.networks.__getitem__, networks):
        widened = entry.precision != "fp32" and (
            arithmetic(entry.component, entry.precision, cpu_precision) == "fp32"
        )
        sizes[entry.component] = manifest.files[weights_path(entry.component)].size * (1 + widened)
    return MEMORY_PER_WEIGHT * sum(sizes.values()) <= available
