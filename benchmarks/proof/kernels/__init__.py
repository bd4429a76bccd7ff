# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a GPU: checked, and timed against PyTorch."""
