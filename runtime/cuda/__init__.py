# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 with engines on a CUDA device."""
