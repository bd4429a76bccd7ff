# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify`: a bundle against PyTorch."""
