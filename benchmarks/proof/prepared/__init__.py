# SPDX-License-Identifier: Apache-2.0
"""What proofs prepare: bundles and engines, shared by parts and processes."""
