# SPDX-License-Identifier: Apache-2.0
"""Checks of `lamp-trt verify` and their limits."""
