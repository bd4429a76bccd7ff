# SPDX-License-Identifier: Apache-2.0
"""Proofs on a GPU: python -m lamp_trt.benchmarks.proof. Run from a clone; not in the wheel."""
