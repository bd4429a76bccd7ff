# SPDX-License-Identifier: Apache-2.0
"""Entries of the bundle's networks, each by itself, on every available backend."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from numpy.typing import NDArray

from lamp_trt.benchmarks.bench.harness import Entry, Outputs
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends.registry import device_engine, host_engine
from lamp_trt.runtime.cuda.device import CudaDevice, Device
from lamp_trt.runtime.cuda.engines import BoundEngine, EngineSet

Arrays = Mapping[str, NDArray[Any]]

HELD_PER_WEIGHT = 2.5
"""Memory of a loaded network over its weights' bytes: ONNX Runtime packs a second copy for its kernels."""


def network_entries(
    subject: Subject, reference: Callable[[str], tuple[Callable[[], Outputs], str] | None]
) -> list[Entry]:
    """Return an entry for each network and backend. reference: network → its expected outputs and their
    source, or None."""
    entries = []
    for name in subject.networks:
        expected = reference(name) if subject.is_plain(name) else None
        work = subject.work[name]
        for backend in subject.backends:
            on_host = subject.ordinal is None
            entries.append(
                Entry(
                    name=name,
                    group="networks",
                    backend=backend,
                    setup=partial(_on_host if on_host else _on_device, subject, name, backend),
                    clock="wall" if on_host else "stream",
                    flops=work.flops,
                    bytes_moved=work.bytes_moved,
                    held_bytes=int(HELD_PER_WEIGHT * subject.weight_bytes(name)) if on_host else 0,
                    reference=expected[0] if expected and on_host else None,
                    reference_name=expected[1] if expected and on_host else "",
                )
            )
    return entries


@contextmanager
def _on_host(subject: Subject, network: str, backend: str) -> Iterator[Callable[[], Arrays]]:
    options = subject.options
    with host_engine(
        backend,
        subject.bundle,
        network,
        motion=subject.motion_of(network),
        num_threads=options.num_threads,
        engine_dir=options.engine_dir,
        cpu_precision=options.cpu_precision,
    ) as engine:
        arrays = subject.inputs(network)
        yield lambda: engine.run(arrays)


@contextmanager
def _on_device(subject: Subject, network: str, backend: str) -> Iterator[Callable[[], float]]:
    assert subject.ordinal is not None

    def load(name: str) -> Any:
        return device_engine(
            backend,
            subject.bundle,
            name,
            device=device.ordinal,
            stream=device.stream,
            motion=subject.motion_of(name),
            engine_dir=subject.options.engine_dir,
        )

    with CudaDevice(subject.ordinal) as device, EngineSet(device, load) as engines:
        bound = engines.add(network)
        engines.share_scratch()
        yield seconds_on(device, bound, subject.inputs(network))


def seconds_on(device: Device, bound: BoundEngine, arrays: Arrays) -> Callable[[], float]:
    """Return a function that runs a bound network once and returns the seconds between two events on the
    stream. The run is a replay where the engine can be captured."""
    for name, values in arrays.items():
        device.upload(bound.arrays[name], values)
    bound.enqueue()
    device.synchronize()
    run = bound.engine.capture(device.stream, bound.enqueue) or bound.enqueue

    def measure() -> float:
        start = device.mark()
        run()
        end = device.mark()
        device.synchronize()
        return device.seconds(start, end)

    return measure
