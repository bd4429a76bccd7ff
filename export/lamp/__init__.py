# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet and Algorithm 1 in PyTorch, and the exported formulations of the UNets."""
