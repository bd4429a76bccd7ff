# SPDX-License-Identifier: Apache-2.0
"""Images, videos and text: decoding, encoding, tokenization."""
