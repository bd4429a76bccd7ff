# SPDX-License-Identifier: Apache-2.0
"""The bundle, a folder of graphs, weights and motions: read, written, hashed."""
