# SPDX-License-Identifier: Apache-2.0
"""Pools of engines: their protocol, and the processes of this machine."""
