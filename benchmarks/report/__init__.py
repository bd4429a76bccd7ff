# SPDX-License-Identifier: Apache-2.0
"""Results of `lamp-trt bench` for people: HTML, Markdown, README tables. The JSON is their only source."""
