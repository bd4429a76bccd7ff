# SPDX-License-Identifier: Apache-2.0
"""Network specifications, the bundle format and the backends that run ONNX networks. Imports no torch."""
