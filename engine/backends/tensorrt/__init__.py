# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: building, loading and refitting engines."""
