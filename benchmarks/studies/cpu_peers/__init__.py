# SPDX-License-Identifier: Apache-2.0
"""Every network on a CPU by each backend, PyTorch eager and torch.compile."""
