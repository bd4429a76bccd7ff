# SPDX-License-Identifier: Apache-2.0
"""The server: an HTTP front that owns jobs and queue, and pools of engines that make the videos."""
