# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints in the published layouts."""
