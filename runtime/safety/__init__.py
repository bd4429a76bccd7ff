# SPDX-License-Identifier: Apache-2.0
"""The safety checker: pictures prepared, judged by a network, and refused or reported."""
