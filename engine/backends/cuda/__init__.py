# SPDX-License-Identifier: Apache-2.0
"""CUDA calls and graphs shared by the device backends."""
