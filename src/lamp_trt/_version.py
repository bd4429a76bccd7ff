# SPDX-License-Identifier: Apache-2.0
"""The version, for modules that must not import lamp_trt/__init__.py."""

__version__ = "0.1.0"
