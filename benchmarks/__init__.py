# SPDX-License-Identifier: Apache-2.0
"""Measurements and proofs: how fast, how close to the PyTorch reference, on which machine."""
