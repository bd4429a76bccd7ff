# SPDX-License-Identifier: Apache-2.0
"""The PyTorch and ONNX sides that a bundle is compared with."""
