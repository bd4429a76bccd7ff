# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs apart from any backend: where their weights are, and their digest."""
