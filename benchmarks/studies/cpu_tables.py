# SPDX-License-Identifier: Apache-2.0
"""Tables of the CPU studies, whose results have JSON formats of their own."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import amount, seconds, small
from lamp_trt.benchmarks.report.tables import Table

Values = Mapping[str, Any]

_ENGINES = {
    "onnxruntime": "lamp-trt on ONNX Runtime",
    "aotinductor": "lamp-trt on an AOTInductor package",
    "lean": "PyTorch eager, our lean modules",
    "official": "PyTorch eager, official formulation",
}

_WAYS = {"session": "a new session for each motion", "inputs": "motion tensors are inputs of one session"}


def unet_cpu_table(values: Values) -> Table:
    """Return the table of benchmarks/studies/unet_cpu.py's results."""
    official = values["engines"]["official"]["wall_s"]
    rows = []
    for name, title in _ENGINES.items():
        engine = values["engines"][name]
        error = values.get(f"{name}_rel_l2")
        rows.append(
            [
                title,
                seconds(engine["wall_s"]),
                seconds(engine["wall_s_min"]),
                f"{official / engine['wall_s']:.2f}x",
                amount(engine["peak_bytes"], "B"),
                "reference" if error is None else small(error),
            ]
        )
    note = f"{_where(values)}, PyTorch {values['machine']['torch']}. Error: relative L2."
    header = ("", "median", "fastest", "speed", "peak memory", "error")
    return Table("The mid-size UNet on a CPU", header, rows, note, frozenset({0}))


def hoists_table(values: Values) -> Table:
    """Return the table of benchmarks/studies/hoists_cpu.py's results."""
    plain = values["forms"]["plain"]
    rows = [
        [
            f"`{form}`" if form != "plain" else form,
            seconds(figures["wall_s"]),
            seconds(figures["cpu_s"]),
            f"{figures['cpu_s'] / plain['cpu_s']:.3f}",
            seconds(figures["before_first_step_s"]),
            "reference" if figures is plain else small(figures["rel_l2_to_plain"]),
        ]
        for form, figures in values["forms"].items()
    ]
    note = (
        f"{_where(values)}. A step includes the networks that precompute its inputs at every step. Ratio: of "
        "CPU times, to the plain form's. Error: relative L2."
    )
    header = ("hoisted", "step", "CPU time", "ratio", "before the first step", "error")
    return Table("Hoists on a CPU", header, rows, note, frozenset({0}))


def motion_switch_table(values: Values) -> Table:
    """Return the table of benchmarks/studies/motion_switch.py's results."""
    rows = []
    for way, title in _WAYS.items():
        figures = values["ways"][way]
        memory = (amount(figures[name], "B") for name in ("anonymous_bytes", "mapped_bytes", "peak_bytes"))
        rows.append([title, seconds(figures["switch_s"]), seconds(figures["step_s"]), *memory])
    note = (
        f"{_where(values)}. {values['motions']} motions, each shown. Memory after all of them: the process's "
        "own, mapped files, peak."
    )
    header = ("", "switch", "step", "memory", "mapped", "peak")
    return Table("Motions on ONNX Runtime", header, rows, note, frozenset({0}))


def _where(values: Values) -> str:
    """Return the text that names the UNet, its size and the machine."""
    machine, widths = values["machine"], tuple(values["config"]["block_out_channels"])
    frames, height, width = values["size"]
    return (
        f"One step's UNet, widths {widths}, {frames} frames of {width}x{height}, batch 2, fp32, on "
        f"{machine['cpu_threads']} threads of {machine['cpu']}; ONNX Runtime {machine['onnxruntime']}"
    )
