# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: networks on its CPU and CUDA providers."""
