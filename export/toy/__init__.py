# SPDX-License-Identifier: Apache-2.0
"""Generator of tiny checkpoints in the published layouts."""
