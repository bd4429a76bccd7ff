# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify`: comparison of a bundle with PyTorch."""
