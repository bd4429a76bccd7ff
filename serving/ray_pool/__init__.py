# SPDX-License-Identifier: Apache-2.0
"""A pool of engines on Ray Serve: one replica for each GPU, on one machine or many."""
