# SPDX-License-Identifier: Apache-2.0
"""The bash script of one call."""

from dataclasses import dataclass

from lamp_trt.benchmarks.proof.names import COMMIT
from lamp_trt.benchmarks.proof.plan.schedule import (
    DETACHED,
    ENVIRONMENT_S,
    FACTS_S,
    KILL_AFTER_S,
    REPORT_KILL_S,
    REPORT_S,
    WAIT,
    Call,
    Step,
)

MODULE = "python3 -m lamp_trt.benchmarks.proof"
TIMEOUT = f"timeout -k {KILL_AFTER_S}"
BUDGET_MARGIN_S = 10
"""A part starts no check in its last seconds."""


@dataclass(frozen=True)
class ScriptOptions:
    """The part that all scripts of a plan have in common."""

    calls: int
    call_seconds: int
    prepare_seconds: int
    backends: tuple[str, ...]
    max_files: int
    max_file_mib: int
    commit: str


def script(call: Call, options: ScriptOptions) -> str:
    """Every command that may take long is under `timeout`; one that fails ends nothing else."""
    lines = [*_head(call, options), *_environment(options), *_preparation(call, options)]
    for step in call.steps:
        lines += _step(step, options)
    return "\n".join([*lines, 'echo "call ended after $SECONDS s"', ""])


def command_of(step: Step, options: ScriptOptions) -> str:
    """The command that `timeout` starts."""
    if step.part == WAIT:
        return "bash -c 'while kill -0 '\"$PREPARING\"' 2>/dev/null; do sleep 1; done'"
    backends = "" if step.part == "kernels" else _backends(options)
    budget = max(step.limit_s - BUDGET_MARGIN_S, 1)
    words = [MODULE, step.part, *step.arguments]
    return f'{" ".join(words)}{backends} --folder "$P" --out "$P/results" --budget {budget}'


def _head(call: Call, options: ScriptOptions) -> list[str]:
    return [
        "#!/usr/bin/env bash",
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Call {call.number} of {options.calls}: at most {call.sum_s} s of {options.call_seconds} s.",
        "# Run it in the root of the repository's tree. Results lie in $OUT, work in $PROOF_FOLDER.",
        "set -u",
        'HERE=$(cd "$(dirname "$0")" && pwd)',
        "export OUT=${OUT:-$PWD/proof-results} P=${PROOF_FOLDER:-$HOME/lamp-trt-proof}",
        'mkdir -p "$OUT" "$P/results" "$P/logs"',
    ]


def _environment(options: ScriptOptions) -> list[str]:
    return [
        "if [ -d /usr/local/cuda ]; then",
        "  export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} PATH=/usr/local/cuda/bin:$PATH",
        "  export LIBRARY_PATH=$CUDA_HOME/lib64/stubs:$CUDA_HOME/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}",
        "fi",
        'export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR="$P/inductor"',
        f"export {COMMIT}={options.commit}",
        'if ls "$HERE"/wheels/*.whl >/dev/null 2>&1; then',
        f"  {TIMEOUT} {ENVIRONMENT_S} python3 -m pip install -q --no-index --no-deps --no-compile \\",
        '    --no-cache-dir --upgrade --target "$P/site" "$HERE"/wheels/*.whl || echo "no wheels"',
        "fi",
        'export PYTHONPATH="$P/site:$PWD/src${PYTHONPATH:+:$PYTHONPATH}"',
        f"{TIMEOUT} {FACTS_S} bash -c '",
        "  nvidia-smi -L; nproc; free -g; df -h . ; python3 --version",
        "  for tool in git g++ nvcc compute-sanitizer; do command -v $tool || echo no $tool; done",
        '  python3 -m pip list 2>/dev/null | grep -iE "torch|triton|cuda|onnx|numpy|diffusers|transformers"',
        '\' > "$P/logs/facts.txt" 2>&1 || true',
        'cat "$P/logs/facts.txt"',
    ]


def _preparation(call: Call, options: ScriptOptions) -> list[str]:
    """Detached: it goes on when this call has ended, and in a later call where it was cut off."""
    *together, last = DETACHED
    file = f"$P/prepare-{call.number}.sh"  # bash reads it as it goes: an earlier call's may still be read
    limit = f"{TIMEOUT} {options.prepare_seconds}"

    def prepare(subject: str) -> str:
        return (
            f'{limit} {MODULE} prepare --subject {subject}{_backends(options)} --folder "$P" '
            f'--out "$P/results/prepare-{subject}" --budget {options.prepare_seconds} '
            f'> "$P/logs/prepare-{subject}.txt" 2>&1'
        )

    return [
        f"cat > \"{file}\" <<'PREPARE'",
        *(f"{prepare(subject)} &" for subject in together),
        "wait",
        prepare(last),
        "PREPARE",
        f'setsid nohup bash "{file}" </dev/null >/dev/null 2>&1 &',
        "PREPARING=$!",
    ]


def _step(step: Step, options: ScriptOptions) -> list[str]:
    log = f'2>&1 | tee -a "$P/logs/{step.part}.txt"'
    report = (
        f'{MODULE} report --folder "$P" --out "$OUT" --max-files {options.max_files} '
        f"--max-file-mib {options.max_file_mib}"
    )
    return [
        f'echo "== {step.part} ($SECONDS s)"',
        f"{TIMEOUT} {step.limit_s} {command_of(step, options)} {log} || true",
        f"timeout -k {REPORT_KILL_S} {REPORT_S} {report} || true",
    ]


def _backends(options: ScriptOptions) -> str:
    return "".join(f" --backend {name}" for name in options.backends)
