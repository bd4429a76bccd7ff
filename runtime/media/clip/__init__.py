# SPDX-License-Identifier: Apache-2.0
"""Reading of video files to edit: decoded in a child process with limits."""
