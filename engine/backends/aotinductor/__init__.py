# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: networks as packages compiled by PyTorch."""
