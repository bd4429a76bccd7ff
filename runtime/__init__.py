# SPDX-License-Identifier: Apache-2.0
"""From engines to frames: Algorithm 1 of the LAMP paper, without torch and diffusers."""
