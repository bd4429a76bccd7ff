# SPDX-License-Identifier: Apache-2.0
"""LAMP few-shot video generation, deployed: one engine, many motions, no torch at run time."""

__version__ = "0.1.0"
