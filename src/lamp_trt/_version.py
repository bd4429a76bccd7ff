# SPDX-License-Identifier: Apache-2.0
"""The version, for modules that must not import the package's front."""

__version__ = "0.1.0"
