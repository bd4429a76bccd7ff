# SPDX-License-Identifier: Apache-2.0
"""The backends: the contract of their engines, their records and registry, the store of compiled engines."""
