# SPDX-License-Identifier: Apache-2.0
"""From ONNX to something that runs: network specifications, the bundle, the backends. No torch."""
