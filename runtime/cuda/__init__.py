# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 over engines on a CUDA device."""
