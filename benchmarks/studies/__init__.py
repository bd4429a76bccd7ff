# SPDX-License-Identifier: Apache-2.0
"""Measurements that decided options, and their tables. Run from a clone; not in the wheel."""
