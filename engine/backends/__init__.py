# SPDX-License-Identifier: Apache-2.0
"""The backends: engine protocols, backend records and registry, storage of compiled engines."""
