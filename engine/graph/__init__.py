# SPDX-License-Identifier: Apache-2.0
"""Backend-independent handling of ONNX graphs: reading, weight locations, digest."""
