# SPDX-License-Identifier: Apache-2.0
"""The proofs as scripts for a GPU machine that is lent for minutes: bare, offline, emptied each time."""
