# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: finding, checking and reading them."""
