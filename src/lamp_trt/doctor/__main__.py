# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from lamp_trt.doctor import PURPOSES, diagnose, diagnosis_text, impossible
from lamp_trt.streams import safe_streams

with safe_streams() as (out, _):
    findings = diagnose(Path())
    print(diagnosis_text(findings))
    out.flush()
raise SystemExit(int(out.lost is not None or any(purpose in impossible(findings) for purpose in PURPOSES)))
