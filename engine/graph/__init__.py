# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs apart from any backend: reading them, the places of their weights, their digest."""
