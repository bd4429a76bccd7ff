# SPDX-License-Identifier: Apache-2.0
"""Seeds one bug at a time into a copy of the kernels, and reports those that the tests do not catch.

    python -m tests.mutate_kernels [--jobs 2] [WORD]      # WORD: only bugs whose description holds it

A bug counts as caught if a Python test fails, or else a sanitizer complains. Eight minutes on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.cpu_kernels import EMULATOR, cuda_include
from tests.system_tools import cxx_compiler

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "runtime" / "kernels"
TESTS = [
    ROOT / "tests" / "runtime" / "kernels" / f"test_{name}.py"
    for name in ("loop", "noise", "frames", "preview")
]


@dataclass(frozen=True)
class Bug:
    file: str
    what: str
    old: str
    new: str


COMMON, STEP, NOISE, FRAME, HIST, PREVIEW = (
    "lamp_common.cuh",
    "latent_step.cu",
    "noise.cu",
    "first_frame.cu",
    "hist_match.cu",
    "preview.cu",
)
BUGS = [
    # --- barriers, lanes, tickets
    Bug(
        COMMON,
        "block_sum: no barrier before the sums are read",
        "  __syncthreads();\n#pragma unroll\n",
        "#pragma unroll\n",
    ),
    Bug(COMMON, "block_sum: no barrier before scratch is reused", "0.f);\n  __syncthreads();", "0.f);"),
    Bug(COMMON, "block_sum: one warp too many", "lane < warps", "lane <= warps"),
    Bug(COMMON, "block_sum: one warp too few", "lane < warps", "lane < warps - 1"),
    Bug(
        COMMON,
        "block_sum: every lane writes its own sum",
        "if (lane == 0) scratch[i][warp]",
        "scratch[i][lane]",
    ),
    Bug(COMMON, "warp_sum: a quarter of the warp", "offset = kWarp / 2", "offset = kWarp / 4"),
    Bug(COMMON, "warp_sum: stops before the last neighbour", "offset > 0;", "offset > 1;"),
    Bug(STEP, "no barrier before the ticket", "overflow = __syncthreads_or(overflow);", ""),
    Bug(
        STEP,
        "the last block is the one before the last",
        "gridDim.x * gridDim.y - 1)",
        "gridDim.x * gridDim.y - 2)",
    ),
    Bug(STEP, "the ticket is not taken back", "state->arrived = 0;", ""),
    Bug(
        STEP,
        "every block advances the loop",
        "if (atomicAdd(&state->arrived, 1u) == gridDim.x * gridDim.y - 1)",
        "atomicAdd(&state->arrived, 1u);",
    ),
    Bug(
        STEP,
        "a barrier that a part of the block skips",
        "if (needed[kOwn]) {   //",
        "if (needed[kOwn] && threadIdx.x * V < hw) {   //",
    ),
    # --- which step, which buffer
    Bug(STEP, "in place", "((left - 1u) & 1u)", "(left & 1u)"),
    Bug(STEP, "buffers swapped", "latents + (left & 1u)", "latents + ((left + 1u) & 1u)"),
    Bug(
        STEP,
        "ping-pong by the step, not by what is left",
        "left = num_steps - step;",
        "left = step + 2 * num_steps;",
    ),
    Bug(STEP, "the next step's row", "rows[step];", "rows[step + 1 < num_steps ? step + 1 : step];"),
    Bug(STEP, "a step too many", "if (step >= num_steps) return;", "if (step > num_steps) return;"),
    Bug(STEP, "the loop does not advance", "state->step = step + 1;", "state->step = step;"),
    Bug(STEP, "this step's time row", "time_row, step + 1, time_words", "time_row, step, time_words"),
    Bug(STEP, "a time row beyond the table", "left > 1) copy_row", "left > 0) copy_row"),
    Bug(
        STEP,
        "the time row is never copied",
        "if (f == 0 && c == 0 && left > 1) copy_row",
        "if (false) copy_row",
    ),
    Bug(
        COMMON,
        "copy_row: one word per thread",
        "i += blockDim.x) out[i] = table",
        "i += words) out[i] = table",
    ),
    Bug(
        NOISE,
        "the initial latents in the other buffer",
        "(num_steps & 1) * size",
        "(1 - (num_steps & 1)) * size",
    ),
    Bug(NOISE, "the step is not reset", "*state = {0u,", "*state = {state->step,"),
    Bug(
        NOISE, "the ticket is not reset", "(num_steps), 0u, kNoStep}", "(num_steps), state->arrived, kNoStep}"
    ),
    Bug(NOISE, "the overflow is not reset", "0u, kNoStep};", "0u, state->first_overflow};"),
    Bug(NOISE, "progress is not reset", "report(progress, 0u, kNoStep);", ""),
    Bug(NOISE, "image_not_finite is not reset", "progress->image_not_finite = 0u;", ";"),
    Bug(NOISE, "the first time row is not copied", "copy_row(time_table, time_row, 0, time_words);", ""),
    # --- arithmetic of the step
    Bug(STEP, "guidance from the conditional side", "eps[j] = u[j] + row", "eps[j] = eps[j] + row"),
    Bug(STEP, "guidance backwards", "(eps[j] - u[j])", "(u[j] - eps[j])"),
    Bug(STEP, "cx and ce swapped", "row.cx * x[j] + row.ce * eps[j]", "row.ce * x[j] + row.cx * eps[j]"),
    Bug(
        STEP,
        "halves of the batch swapped",
        "batch == 2 ? noise_pred + at : nullptr, noise_pred + (batch - 1) * size + at",
        "batch == 2 ? noise_pred + size + at : nullptr, noise_pred + at",
    ),
    Bug(STEP, "frame 0 is stepped", "frame > 0 || (row.mode", "true || (row.mode"),
    Bug(STEP, "the image's frame is not stepped", "frame > 0 || (row.mode & kStepFrame0)", "frame > 0"),
    Bug(STEP, "the wrong reference frame", "k == kOne ? 1 : 0", "k == kOne ? 2 : 0"),
    Bug(STEP, "frame 1 is matched to itself", "to_one = f > 1", "to_one = f > 0"),
    Bug(STEP, "frames 3.. only", "to_one = f > 1", "to_one = f > 2"),
    Bug(STEP, "frame 0 is matched", "to_zero = f > 0 &&", "to_zero ="),
    Bug(STEP, "late frames to frame 0 directly", "if (one_to_zero) one.match(zero, eps);", ""),
    Bug(
        STEP,
        "the reference frame before its DDIM step",
        "frame > 0 || (row.mode & kStepFrame0)}",
        "(frame > 0 && k == kOwn) || (row.mode & kStepFrame0)}",
    ),
    Bug(STEP, "no final AdaIN", "if (row.mode & kFinalToFrame0) map.match(zero, eps);", ""),
    Bug(STEP, "no AdaIN of all frames to frame 0", "if (row.mode & kAllToFrame0) map.match(zero, eps);", ""),
    Bug(STEP, "biased variance", "squares[k] / (hw - 1)", "squares[k] / hw"),
    Bug(STEP, "no eps", "sqrtf(out.variance + eps)", "sqrtf(out.variance)"),
    Bug(
        STEP,
        "the variance is not carried on",
        "out = {style.mean, out.variance * ratio * ratio}",
        "out = style",
    ),
    Bug(STEP, "the mean is not carried on", "* map.scale + map.out.mean", "* map.scale + map.center"),
    Bug(
        STEP,
        "values beyond the first vector are skipped",
        "int i = first + stride; i < hw",
        "int i = first + stride; i < 0",
    ),
    Bug(STEP, "one vector in two", "i < hw; i += stride", "i < hw; i += 2 * stride"),
    Bug(STEP, "one half of the sample", "if (batch == 2) store<V>(sample", "if (batch == 3) store<V>(sample"),
    Bug(
        STEP,
        "channels and frames swapped",
        "(static_cast<long long>(c) * gridDim.x + f) * hw",
        "(static_cast<long long>(f) * gridDim.y + c) * hw",
    ),
    # --- what the host is told
    Bug(STEP, "overflow by infinity only", "kLargest<T>", "kLargest<float>"),
    Bug(STEP, "NaN is no overflow", "!(fabsf(y[j]) <= kLargest<T>)", "fabsf(y[j]) > kLargest<T>"),
    Bug(STEP, "the last overflow", "atomicMin(&state->first_overflow, step)", "state->first_overflow = step"),
    Bug(STEP, "overflow in one thread only", "overflow = __syncthreads_or(overflow);", "__syncthreads();"),
    Bug(
        COMMON,
        "report: words swapped",
        "(first_overflow) << 32 | steps_done",
        "(steps_done) << 32 | first_overflow",
    ),
    Bug(COMMON, "report: to nowhere", "if (progress == nullptr) return;", ""),
    # --- noise
    Bug(
        NOISE,
        "frame and purpose swapped",
        "static_cast<unsigned>(frame), static_cast<unsigned>(purpose)",
        "static_cast<unsigned>(purpose), static_cast<unsigned>(frame)",
    ),
    Bug(
        NOISE,
        "no purpose",
        "static_cast<unsigned>(frame), static_cast<unsigned>(purpose)",
        "static_cast<unsigned>(frame), 0u",
    ),
    Bug(NOISE, "nine rounds", "round < 10", "round < 9"),
    Bug(NOISE, "a wrong key step", "0x9E3779B9u", "0x9E3779B8u"),
    Bug(NOISE, "half of the seed", "static_cast<unsigned>(seed >> 32)))", "0u))"),
    Bug(NOISE, "sine and cosine swapped", "(r * cosine, r * sine)", "(r * sine, r * cosine)"),
    Bug(NOISE, "u may be 0", "(static_cast<float>(a) + 0.5f)", "static_cast<float>(a)"),
    Bug(
        NOISE,
        "pairs crossed",
        "box_muller(bits.x, bits.y), q = box_muller(bits.z, bits.w)",
        "box_muller(bits.x, bits.z), q = box_muller(bits.y, bits.w)",
    ),
    Bug(NOISE, "weights do not add up to 1", "(1.f - base_weight) * x[j]", "x[j]"),
    Bug(
        NOISE,
        "a base for each frame",
        "draw(seed, base_purpose, 0, block, base)",
        "draw(seed, base_purpose, f, block, base)",
    ),
    Bug(
        NOISE,
        "the paper's base from the video's stream",
        "draw(seed, base_purpose, 0",
        "draw(seed, purpose, 0",
    ),
    Bug(
        NOISE,
        "the base with one frame's stride",
        "{static_cast<long long>(base_frames) * hw, 0, hw}",
        "{hw, 0, hw}",
    ),
    Bug(
        NOISE,
        "the first frame with the video's stride",
        "load_values<V>(first_frame, {hw, 0, hw}",
        "load_values<V>(first_frame, {static_cast<long long>(frames) * hw, 0, hw}",
    ),
    Bug(NOISE, "frame 0 is mixed noise", "if (f == 0 && first_frame != nullptr)", "if (false)"),
    Bug(NOISE, "values beyond the frame are written", "if (i + j < count) p[place", "p[place"),
    Bug(
        NOISE, "one half of the first sample", "if (batch == 2) store_values", "if (batch == 3) store_values"
    ),
    Bug(
        NOISE,
        "log-variance not clamped below",
        "fmaxf(log_variance, -30.f)",
        "log_variance",
    ),
    Bug(NOISE, "log-variance not clamped above", "-30.f), 20.f)", "-30.f), 90.f)"),
    Bug(NOISE, "the noise is not scaled", "deviation * value) * scaling_factor", "deviation * value)"),
    # --- previews
    Bug(PREVIEW, "truncated instead of rounded", "rintf(level(value))", "level(value)"),
    Bug(PREVIEW, "BGR", "bytes[3 * tid + colour]", "bytes[3 * tid + 2 - colour]"),
    Bug(PREVIEW, "the given frame is stepped", "at / hw < first_stepped", "at / hw < 0"),
    Bug(PREVIEW, "the unconditional half alone", "(batch - 1) * kPreviewChannels", "0 * kPreviewChannels"),
    Bug(PREVIEW, "no guidance", "eps = u + guidance * (eps - u);", "eps = u + (eps - u);"),
    Bug(PREVIEW, "no bias", "float value = map[kPreviewChannels];", "float value = 0.f;"),
    Bug(PREVIEW, "no barrier before the bytes are written", "  __syncthreads();\n", ""),
    Bug(PREVIEW, "the last bytes are not written", "if (tid < size % 4) out", "if (false) out"),
    Bug(PREVIEW, "whole blocks of bytes", "left < 3 * kPreviewThreads ? left :", "false ? left :"),
    Bug(PREVIEW, "pixels beyond the video", "if (at < pixels) {", "if (true) {"),
    # --- first frame, decoder
    Bug(FRAME, "half up", "rintf(level(pair[x]))", "floorf(level(pair[x]) + 0.5f)"),
    Bug(FRAME, "truncated instead of rounded", "rintf(level(pair[x]))", "level(pair[x])"),
    Bug(FRAME, "the mean is truncated", "int sum = 2;", "int sum = 0;"),
    Bug(FRAME, "BGR", "+ channel] = static_cast", "+ 2 - channel] = static_cast"),
    Bug(
        FRAME,
        "one rounding in fp16",
        "const Out scaled = from_float<Out>(static_cast<float>(level) / 127.5f);",
        "const float scaled = static_cast<float>(level) / 127.5f;",
    ),
    Bug(COMMON, "not clamped above", "fminf(fmaxf(x / 2.f + 0.5f, 0.f), 1.f)", "fmaxf(x / 2.f + 0.5f, 0.f)"),
    Bug(COMMON, "not clamped below", "fminf(fmaxf(x / 2.f + 0.5f, 0.f), 1.f)", "fminf(x / 2.f + 0.5f, 1.f)"),
    Bug(FRAME, "NaN is not reported", "progress->image_not_finite = 1u;", ";"),
    Bug(FRAME, "rows beyond the image", "channel < 3 && at < area", "channel < 3"),
    Bug(
        FRAME,
        "frames and channels swapped",
        "(static_cast<long long>(f) * gridDim.y + c)",
        "(static_cast<long long>(c) * gridDim.z + f)",
    ),
    Bug(FRAME, "multiplied by the scale", "x / scaling_factor", "x * scaling_factor"),
    # --- histograms
    Bug(HIST, "no barrier after zeroing", "= 0;\n  __syncthreads();", "= 0;"),
    Bug(
        HIST,
        "not an atomic count",
        "atomicAdd(&part[c][copy][value[j][c]], 1u)",
        "part[c][copy][value[j][c]] += 1u",
    ),
    Bug(HIST, "no barrier before the counts are added", "report_not_finite(not_finite, progress);", ""),
    Bug(HIST, "one copy is left out", "k < kCopies; ++k) n +=", "k < kCopies - 1; ++k) n +="),
    Bug(HIST, "one part is left out", "b < parts; ++b", "b < parts - 1; ++b"),
    Bug(
        HIST,
        "rounded instead of truncated",
        "static_cast<unsigned char>(level(x[j]))",
        "static_cast<unsigned char>(rintf(level(x[j])))",
    ),
    Bug(HIST, "no barrier before the running sum", "/ divisor;\n  }\n  __syncthreads();", "/ divisor;\n  }"),
    Bug(
        HIST,
        "no barrier after the running sum",
        "sums[b] = sum;\n    }\n  }\n  __syncthreads();",
        "sums[b] = sum;\n    }\n  }",
    ),
    Bug(HIST, "one running sum only", "bin / kWarp < 2", "bin / kWarp < 1"),
    Bug(HIST, "single precision", "double sum = 0.0;", "float sum = 0.f;"),
    Bug(
        HIST,
        "multiplied by the reciprocal",
        "static_cast<double>(n) / divisor",
        "static_cast<double>(n) * (1.0 / divisor)",
    ),
    Bug(HIST, "right-sided search", "cdf[0][middle] < cdf[1][bin]", "cdf[0][middle] <= cdf[1][bin]"),
    Bug(HIST, "levels past the end wrap around", "low < 255 ? low : 255", "low"),
    Bug(HIST, "the frame before", "which ? f : 0", "which ? f - 1 : 0"),
    Bug(HIST, "frame 0 is changed", "const int f = blockIdx.y + 1, tid", "const int f = blockIdx.y, tid"),
    Bug(HIST, "no barrier before the table is used", "* kBins + i];\n  __syncthreads();", "* kBins + i];"),
    Bug(HIST, "colours out of step", "table[k % kColours][pack", "table[(k + 1) % kColours][pack"),
    Bug(
        HIST,
        "pixels counted twice",
        "p += gridDim.x * threads * V) {\n    unsigned char value",
        "p += threads * V) {\n    unsigned char value",
    ),
    Bug(HIST, "planes out of step", "planes + c * pixels + pixel", "planes + (2 - c) * pixels + pixel"),
]


def caught_by(bug: Bug) -> str | None:
    """What noticed it, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "kernels")
        shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.fatbin"))
        source = (copy / bug.file).read_text()
        if source.count(bug.old) != 1:
            raise SystemExit(f"{bug.file}: {bug.what}: {bug.old!r} occurs {source.count(bug.old)} times")
        (copy / bug.file).write_text(source.replace(bug.old, bug.new))
        environment = {**os.environ, "LAMP_TRT_KERNELS": str(copy), "TMPDIR": folder}
        environment.pop("LAMP_TRT_GOLDEN", None)
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--no-header"]
        tests = map(str, TESTS)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return failed[0].partition("::")[2].partition(" - ")[0] if failed else f"exit {done.returncode}"
        return next(
            (s for s in ("thread", "address,undefined") if not sanitized(copy, s, Path(folder))), None
        )


def sanitized(kernels: Path, sanitizer: str, folder: Path) -> bool:
    """Whether the kernels run clean under a sanitizer, as in CMakeLists.txt."""
    flags = ["-std=c++20", "-O1", "-g", "-w", "-fno-strict-aliasing", f"-fsanitize={sanitizer}"]
    flags += ["-fno-sanitize-recover=all", "-fsanitize-sections=emu_shared"]
    program = folder / "sanitized"
    include = ["-isystem", str(cuda_include()), "-I", str(kernels)]
    main = str(EMULATOR / "sanitize_main.cpp")
    subprocess.run([str(cxx_compiler()), *flags, *include, "-o", str(program), main], check=True)
    return subprocess.run([str(program)], capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    bugs = [bug for bug in BUGS if options.word in f"{bug.file}: {bug.what}"]
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for bug, caught in zip(bugs, pool.map(caught_by, bugs), strict=True):
            print(f"{bug.file:16} {bug.what:45} {caught or 'NOT CAUGHT'}", flush=True)
            survivors += [] if caught else [bug]
    print(f"{len(bugs) - len(survivors)} of {len(bugs)} bugs caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
