# SPDX-License-Identifier: Apache-2.0
"""The entries that `lamp-trt bench` measures."""
