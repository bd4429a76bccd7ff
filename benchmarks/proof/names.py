# SPDX-License-Identifier: Apache-2.0
"""Names that reports and scripts share. Imports nothing, so that commands without a GPU start at once."""

COMMIT = "LAMP_TRT_PROOF_COMMIT"
"""The variable that names the commit where git cannot: in a copy of the tree."""

UNKNOWN = "unknown"
"""A fact of the machine that no program here reads."""

REPORT_SUFFIX = "-proof-"
"""Between a part's name and a GPU's in the name of a part's report."""


def file_name(gpu: str) -> str:
    """A GPU's name as part of a file's: "NVIDIA H100 80GB HBM3" is "h100-80gb-hbm3"."""
    return gpu.removeprefix("NVIDIA ").lower().replace(" ", "-")


def report_name(part: str, gpu: str) -> str:
    return f"{part}{REPORT_SUFFIX}{file_name(gpu)}.json"
