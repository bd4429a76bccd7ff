# SPDX-License-Identifier: Apache-2.0
"""Reports of `lamp-trt bench` as HTML and Markdown, made from its JSON."""
