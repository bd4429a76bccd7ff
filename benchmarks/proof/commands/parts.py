# SPDX-License-Identifier: Apache-2.0
"""The parts of the proofs: each is a sequence of checks. Their modules are imported when they start."""

from collections.abc import Callable, Iterator
from typing import Any

from lamp_trt.benchmarks.proof.check import Check
from lamp_trt.benchmarks.proof.commands.session import Session
from lamp_trt.engine.backends.tensorrt import BACKEND as TENSORRT


def prepare(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.prepared import prepare as proof_prepare

    session.results = {}
    return proof_prepare.checks(session)


def kernels(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.kernels import checks as proof_kernels

    session.results = {}
    return proof_kernels.checks(session.out, timings=session.timings)


def unet(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.unet import UnetProof

    session.results = session.lamp.results
    for backend in session.backends:
        yield from UnetProof(session.lamp, backend).checks()


def profile(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.profile.checks import ProfileProof

    session.results = {}
    for work in session.works():
        for backend in session.backends:
            yield from ProfileProof(work, backend, session.results).checks()


def candidates(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.candidates import CandidatesProof

    session.results = {}
    return CandidatesProof(session.lamp, session.results).checks()


def peers(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof import peers as proof_peers

    session.results = session.lamp.results
    return proof_peers.checks(session.lamp, session.modes)


def sdxl(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof import peers as proof_peers
    from lamp_trt.benchmarks.proof.unet import UnetProof

    session.results = session.sdxl.results
    for backend in session.backends:
        yield from UnetProof(session.sdxl, backend).checks()
    yield from proof_peers.checks(session.sdxl, session.modes)


def hoists(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.hoists import HoistsProof

    table: list[dict[str, Any]] = []
    session.results = {"hoists": table}
    for work in (session.lamp, session.sdxl):
        for backend in session.backends:
            yield from HoistsProof(work, backend, table, together=session.together).checks()


def tensorrt(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.tensorrt import TensorRtProof

    session.results = session.lamp.results
    return TensorRtProof(session.lamp).checks()


def pipeline(session: Session) -> Iterator[Check]:
    from lamp_trt.benchmarks.proof.pipeline import PipelineProof

    session.results = {}
    for backend in session.backends:
        yield from PipelineProof(session.folder, backend, session.results, session.build_flags).checks()


PARTS: dict[str, Callable[[Session], Iterator[Check]]] = {
    "prepare": prepare,
    "kernels": kernels,
    "unet": unet,
    "profile": profile,
    "candidates": candidates,
    "peers": peers,
    "sdxl": sdxl,
    "hoists": hoists,
    TENSORRT.name: tensorrt,
    "pipeline": pipeline,
}

INDEPENDENT = ("prepare", "kernels")
"""Parts whose checks need no earlier one of the same call: what has passed before is not done again."""
