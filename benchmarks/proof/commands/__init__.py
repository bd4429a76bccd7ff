# SPDX-License-Identifier: Apache-2.0
"""The command line of the proofs: parts, checks and how they end."""
