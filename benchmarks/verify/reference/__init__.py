# SPDX-License-Identifier: Apache-2.0
"""PyTorch and ONNX references that a bundle is compared with."""
