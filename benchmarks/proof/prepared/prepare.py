# SPDX-License-Identifier: Apache-2.0
"""Preparation that takes long and needs no idle GPU: checkpoints, bundles, engines. May run in several
processes at once, each for its own subjects; a part that needs what is being made waits for it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from lamp_trt.benchmarks.proof.check import Check
from lamp_trt.benchmarks.proof.commands.session import WHOLE, Session
from lamp_trt.benchmarks.proof.prepared.engines import compile_networks, engine_folder
from lamp_trt.engine.backends.registry import find_backend


def checks(session: Session) -> Iterator[Check]:
    """Of every subject the bundle, then its engines on the session's backends."""
    for work in session.works():
        title = work.subject.title
        yield f"{title}: checkpoints and bundle are made", partial(_bundle, work)
        for backend in session.backends:
            if find_backend(backend).build is not None:
                yield f"{backend}: {title} is compiled", partial(_compile, backend, work)
    if WHOLE in session.subjects or not session.subjects:
        from lamp_trt.benchmarks.proof.pipeline import PipelineProof

        for number, backend in enumerate(session.backends):
            proof = PipelineProof(session.folder, backend, flags=session.build_flags)
            if number == 0:
                yield "every network: checkpoints and bundle are made", proof.make_bundle
            yield f"{backend}: every network is compiled", proof.compile


def _bundle(work: Any) -> str:
    return str(work.bundle.path)


def _compile(backend: str, work: Any) -> str:
    folder = engine_folder(work.folder, work.build_flags)
    compile_networks(backend, work.bundle, work.options, folder, work.subject.motions, flags=work.build_flags)
    return ", ".join(sorted(path.name for path in folder.glob(f"{work.subject.network}-*")))
