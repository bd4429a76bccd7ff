# SPDX-License-Identifier: Apache-2.0
"""Where the time of one denoising step goes: by kernel, and by kind of work against that kind's floor."""
