# SPDX-License-Identifier: Apache-2.0
"""From checkpoints to ONNX. The only part of lamp-trt that imports torch, benchmarks aside."""
