# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 over engines that run on host arrays."""
