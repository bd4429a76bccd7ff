# SPDX-License-Identifier: Apache-2.0
"""Findings on video encoding and on the compilers of the CUDA kernels."""

import shutil

from lamp_trt.doctor.findings import Finding, probe
from lamp_trt.engine.backends.probe import Gpu

_SECTION = "tools"

_H264 = """
import json, av
from fractions import Fraction
codec = av.CodecContext.create("libx264", "w")
codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 64, "yuv420p", Fraction(1, 8)
packets = [*codec.encode(av.VideoFrame(64, 64, "yuv420p")), *codec.encode(None)]
print(json.dumps({"version": av.__version__, "bytes": sum(packet.size for packet in packets)}))
"""

_KERNELS = """
import json
from lamp_trt.runtime import kernels
answer = {"fatbin": kernels.fatbin_name() in kernels.fatbins(), "stale": bool(kernels.fatbins()), "nvrtc": ""}
try:
    from cuda.bindings import nvrtc
    _, major, minor = nvrtc.nvrtcVersion()
    answer["nvrtc"] = f"{major}.{minor}"
except (ImportError, RuntimeError) as error:
    answer["why"] = str(error)
print(json.dumps(answer))
"""


def tool_findings(gpu: Gpu) -> list[Finding]:
    return [_h264_finding(), _kernels_finding(gpu)]


def _h264_finding() -> Finding:
    """Encode one frame, since a build of FFmpeg may lack the encoder."""
    answer = probe(_H264)
    if answer.get("bytes"):
        return Finding(_SECTION, "H.264 (mp4)", "ok", f"PyAV {answer['version']} encodes with libx264")
    detail = f"videos can be saved as .gif, .webp or PNGs only: {answer.get('error', 'nothing was encoded')}"
    remedy = "pip install --force-reinstall av (its wheels bring libx264)"
    return Finding(_SECTION, "H.264 (mp4)", "problem", detail, remedy)


def _kernels_finding(gpu: Gpu) -> Finding:
    """Whether the kernels are or can be compiled."""
    answer = probe(_KERNELS)
    name, remedy = "CUDA kernels", "pip install 'cuda-core[cu13]', or install nvcc and reinstall lamp-trt"
    if "error" in answer:
        return Finding(_SECTION, name, "problem" if gpu.devices else "note", answer["error"], remedy)
    nvcc = shutil.which("nvcc")
    parts = [
        "compiled with the package"
        if answer["fatbin"]
        else "compiled from other sources than the installed ones"
        if answer["stale"]
        else "not compiled with the package",
        f"NVRTC {answer['nvrtc']}" if answer["nvrtc"] else "no NVRTC to compile them at run time",
        f"nvcc at {nvcc}" if nvcc else "no nvcc",
    ]
    detail = "; ".join(parts)
    if answer["fatbin"] or answer["nvrtc"]:
        return Finding(_SECTION, name, "ok", detail, data=answer)
    return Finding(_SECTION, name, "problem" if gpu.devices else "note", detail, remedy, data=answer)
