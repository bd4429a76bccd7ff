# SPDX-License-Identifier: Apache-2.0
"""Prepared bundles and engines, shared by parts and processes."""
