# SPDX-License-Identifier: Apache-2.0
"""Forms of the LAMP UNet's layers that are equal in exact arithmetic, and the choice of the fastest."""
