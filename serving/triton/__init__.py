# SPDX-License-Identifier: Apache-2.0
"""Serving by NVIDIA Triton Inference Server: a model repository, its Python model, a watchdog."""
