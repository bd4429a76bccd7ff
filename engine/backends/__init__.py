# SPDX-License-Identifier: Apache-2.0
"""The backends: their contract, the registry, the cache of compiled engines, and a package for each."""
