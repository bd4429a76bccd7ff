# SPDX-License-Identifier: Apache-2.0
"""CUDA calls and graphs that device backends share."""
