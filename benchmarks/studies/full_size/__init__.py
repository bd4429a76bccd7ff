# SPDX-License-Identifier: Apache-2.0
"""Networks and videos of the published size on a CPU."""
