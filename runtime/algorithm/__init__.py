# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 in NumPy: constants, DDIM, noise, latents, histograms; the reference for the kernels."""
