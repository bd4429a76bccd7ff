# SPDX-License-Identifier: Apache-2.0
"""Findings on the backends: which can run here, and why others cannot."""

from lamp_trt.doctor.findings import Finding, probe
from lamp_trt.doctor.packages import installed
from lamp_trt.engine.backends.probe import Gpu, Machine
from lamp_trt.engine.backends.registry import backends

_SECTION = "backends"


def backend_findings(gpu: Gpu) -> list[Finding]:
    machine = Machine(gpu, installed, probe)
    rows = [row for backend in backends() for row in backend.probe(machine)]
    return [
        Finding(_SECTION, row.name, row.status, row.detail, row.remedy, row.blocks, dict(row.data))
        for row in rows
    ]
