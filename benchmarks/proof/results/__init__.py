# SPDX-License-Identifier: Apache-2.0
"""The proofs' results as one report, within the limits of what comes back from a lent machine."""
