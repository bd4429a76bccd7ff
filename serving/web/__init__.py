# SPDX-License-Identifier: Apache-2.0
"""HTTP: the API, its guards, uploaded images and streams of events."""
