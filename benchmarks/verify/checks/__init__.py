# SPDX-License-Identifier: Apache-2.0
"""The checks of `lamp-trt verify` and their limits."""
