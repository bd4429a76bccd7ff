# SPDX-License-Identifier: Apache-2.0
"""Every tolerance of the tests, with its reason. "Measured": what the code reached when it was set."""

# --- runtime: NumPy twins -----------------------------------------------------------------------------

ADAIN_FP64_RTOL = 1e-6
"""Statistics of float32 values that were computed in float64: rounding to float32 only."""

STEP_TABLE_ATOL = 2e-6
"""One step in float32 against float64, as a share of the largest value: 16 roundings of 2^-23."""

NOISE_FP64_ATOL = 2e-6
"""Box-Muller with float32 intermediates against float64: |x| <= 6.7, a few ulp (2^-23) of that."""

GOLDEN_ADAIN = {"atol": 2e-5, "rel_l2": 3e-6}
"""The goldens' README. Measured 2.4e-7, 5.4e-8."""

GOLDEN_TEACHER_FORCED = {"atol": 1e-4, "rel_l2": 5e-5}
"""The goldens' README for one step from the golden's latents and UNet output. Measured 7.2e-7."""

GOLDEN_LATENTS_FINAL = {"atol": 1e-4, "rel_l2": 1e-4}
"""The goldens' README. Measured for the final AdaIN alone 6e-8."""

GOLDEN_INITIAL = {"atol": 1e-6, "rel_l2": 1e-6}
"""The goldens' README: noise mixing and the alpha tables, exact or 1 ulp. Measured 0."""

GOLDEN_EXACT = {"atol": 0.0, "rel_l2": 0.0}
"""Integers, and float operations that are done in the same order."""

MP4_PSNR_DB = 38.0
"""H.264 at crf 18 with 4:2:0 chroma against smooth moving frames. Measured 41.7."""

GIF_PSNR_DB = 30.0
"""256 colours for the whole clip, error diffusion. Measured 32.8."""

WEBP_PSNR_DB = 34.0
"""WebP at quality 90. Measured 43.7."""

# --- export: the PyTorch reference (limits of the goldens' README; measured on the first set) ------------

GOLDEN_UNET = {"atol": 2e-5, "rel_l2": 5e-6}
GOLDEN_UNET_STAGE = {"atol": 5e-5, "rel_l2": 5e-6}
GOLDEN_BLOCK = {"atol": 2e-5, "rel_l2": 3e-6}
GOLDEN_VAE = {"atol": 5e-5, "rel_l2": 1e-5}
GOLDEN_LATENTS_FREE = {"atol": 3e-4, "rel_l2": 1e-4}
GOLDEN_VIDEO = {"atol": 5e-4, "rel_l2": 1e-4}
GOLDEN_INVERSION = {"atol": 1e-4, "rel_l2": 2e-5}

GOLDEN_FINAL_FP64 = {"atol": 1e-6, "rel_l2": 1e-6}
"""The whole loop in float64: the algorithm without fp32's noise of 6e-6. Measured 2e-8 and 1.6e-7, the
rounding of the alphas' roots, which the reference keeps in float32 as the official code does."""

GOLDEN_GIF_EQUAL_SHARE, GOLDEN_GIF_LEVELS = 0.99, 8
"""Frames after histogram matching, from our own video: truncation and tables amplify 1e-5 to a level."""

LEAN_FP32_REL_L2 = 5e-6
"""The lean UNet against the official formulation: sums in another order. Measured 5.3e-7."""

LEAN_FP64_REL_L2 = 1e-14
"""The same in float64: no approximation hides in fp32's rounding. Measured 8e-16."""

REFERENCE_EXACT_FP64 = {"atol": 1e-6, "rtol": 1e-6}
"""Identities of DDIM in float64 whose coefficients' roots are float32: 6e-8 each, ten steps and back."""

REFERENCE_STATISTICS_RTOL = 1e-4
"""Mean and deviation of a matched frame: float32 over 24 pixels. Unmatched frames differ by 1e-2 and more."""

RUNTIME_LOOP_REL_L2 = 1e-5
"""The runtime's loop against the reference's, 40 steps with guidance 12.5. Measured 6.5e-7."""

# --- CUDA kernels, run on the CPU ---------------------------------------------------------------------

KERNEL_STEP_ATOL = 1.5e-6
"""One step in float32 against float64, as a share of the largest value: guidance of 12.5 amplifies the
rounding of the predictions' difference, then about 20 roundings of 2^-24. Measured 4.4e-7."""

KERNEL_LOOP_ATOL = 3e-6
"""50 such steps, each from the last one's latents. Measured 7.9e-7."""

KERNEL_CONSTANT_FRAME = 2e-3
"""Share of the largest value, and of the deviation. A frame matched to a constant one has a deviation of
sqrt(eps) = 1e-4 around 0.25, whose float32 resolution is 3e-8: the roundings are 3e-4 of the deviation."""

KERNEL_NOISE_ULP, KERNEL_NOISE_ATOL = 6, 1e-6
"""The twin evaluates logarithm, sine and cosine in float64, the kernels in float32 (2 ulp at most on a GPU).
Near a zero of the cosine its absolute error counts: 6.7 times 2^-23. Measured on the CPU 2 ulp, 1.2e-7."""

KERNEL_POSTERIOR = {"rtol": 2e-6, "atol": 1e-6}
"""expf is within 2 ulp on a GPU, its result at most exp(10)."""

# --- exported graphs ----------------------------------------------------------------------------------

EXPORT_ATOL = 2e-5
"""ONNX Runtime against PyTorch at fp32: kernels that sum in another order. Measured 8e-6 (VAE decoder)."""

EXPORT_UNET_REL_L2 = 5e-6
"""The same for the LAMP UNet, relative. Measured 1.5e-6 at widths (64, 128, 256, 256)."""

HOST_BACKENDS_REL_L2 = 1e-5
"""A network on OpenVINO against ONNX Runtime at fp32: sums in another order. Measured 5.3e-6 (toy's LAMP
UNet), as between PyTorch's own two layouts of convolutions, see benchmarks/verify/checks/limits.py."""

WIDENED_GRAPH_REL_L2 = 5e-5
"""An fp16 graph computed in fp32 against PyTorch in fp32 with the same fp16 weights: the graph's constants,
such as attention's scale, are rounded to fp16 too. Measured 1.6e-5 (text encoder), 1e-5 (UNet), where fp16
itself is off by 1e-3."""

NORM_REL_EPS = 1.0
"""A normalization against float64, relative, in units of the precision's epsilon: sums in double precision
leave the rounding of the result."""

FP16_YARDSTICK = 2.0
"""Our distance to fp32 is at most twice PyTorch's own at that precision."""

BF16_ROUNDING = 1e-4
"""What computes in bfloat16 differs from fp32 by this much at least, relative: its numbers have 8 bits, one
rounding alone is 2^-9 at most and about 1e-3 on average. Anything closer was not computed in bfloat16."""

# --- toy checkpoints ----------------------------------------------------------------------------------

TOY_LOOP_REL_L2 = 1e-4
"""float32 against float64 over the whole loop: a chaotic network's latents would differ by 1."""

# --- the whole pipeline -------------------------------------------------------------------------------

PIPELINE_REL_L2 = 1e-4
"""Final latents on ONNX Runtime against the reference's, free-running: the goldens' limit for such loops."""

EDIT_PSNR_DB, EDIT_PSNR_DIFFERENCE_DB = 13.5, 0.1
"""A clip inverted and denoised again by an untrained UNet, against the clip as the VAE gives it back:
measured 13.81 dB, the reference's 13.79."""

CLIP_LEVELS = 8
"""Frames from such latents: truncation and histogram tables amplify 1e-5 to a level (GOLDEN_GIF_LEVELS)."""

SDXL_UNET_REL_L2 = 5e-6
"""SDXL's networks, ONNX Runtime against diffusers and transformers."""

SDXL_LOOP_REL_L2 = 1e-5
"""Every step of SDXL's loop on ONNX Runtime against diffusers', free-running for 50 steps in float32.
Measured 7e-7; ending at 1 instead of alphas_cumprod[0], or time ids in another order, are 5e-4."""

SDXL_IMAGE_LEVELS, SDXL_IMAGE_DIFFERING = 1, 1e-3
"""The image of those latents, in levels and as the share of values that differ: one near a half rounds to
either side. Measured 2e-5; truncation instead of rounding changes half of them."""

DEVICE_LATENTS_ATOL = 3e-4
"""Latents of the loop on a device's double against the host loop's: the same networks, kernels in float32
against NumPy. Initial noise differs by an ulp or two, which the untrained toy's UNet turns into 5e-6 and
guidance of 12.5 into 7e-5 at the first step; measured 1e-4 at most over 8 steps, with values up to 2."""

DEVICE_LEVELS_DIFFERING = 2e-2
"""Share of the bytes of frames from such latents that may differ, where truncation meets another side."""

PACKAGE_REL_L2 = 5e-6
"""An AOTInductor package for the CPU against eager PyTorch at fp32: fused kernels that sum in another order,
as EXPORT_UNET_REL_L2."""

COMPILED_REL_L2 = 2e-5
"""torch.compile's LAMP UNet against eager PyTorch at fp32, on the toy, whose groups have means that exceed
their spread. Measured 5.5e-6."""

HOISTED_RTOL = 5e-6
"""A UNet with parts hoisted against the plain one on ONNX Runtime, of the largest value: matrix products of
another number of rows sum in another order. Measured below 1e-6."""

HOISTED_LATENTS_ATOL = DEVICE_LATENTS_ATOL
"""Latents of a few steps from UNets that differ by HOISTED_RTOL: guidance amplifies that as it does an ulp of
the noise."""

PROOF_REL_L2 = 1e-5
"""noise_pred and latents of the GPU's proofs at toy size in fp32, against PyTorch and between a UNet's forms:
sums in another order. Measured below 1.1e-6."""
