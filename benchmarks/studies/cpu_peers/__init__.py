# SPDX-License-Identifier: Apache-2.0
"""Every network on a CPU by each backend, PyTorch eager and torch.compile."""

VIDEO, TWO_VIDEOS = "video", "two videos at once"
"""Measured in addition to networks: by one pipeline, and by two in one process at the same time."""
