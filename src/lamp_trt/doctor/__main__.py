# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from lamp_trt.doctor import PURPOSES, diagnose, diagnosis_text, impossible

findings = diagnose(Path())
print(diagnosis_text(findings))
raise SystemExit(int(any(purpose in impossible(findings) for purpose in PURPOSES)))
