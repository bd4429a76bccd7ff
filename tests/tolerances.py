# SPDX-License-Identifier: Apache-2.0
"""Every numerical tolerance of the tests, with its reason. "Measured" is what the code reached when it was set."""

# --- runtime: NumPy twins -----------------------------------------------------------------------------

ADAIN_FP64_RTOL = 1e-6
"""Statistics of float32 values that were computed in float64: rounding to float32 only."""

STEP_TABLE_ATOL = 2e-6
"""One step in float32 against float64 or another order, as a share of the largest value: 16 roundings of 2^-23."""

NOISE_FP64_ATOL = 2e-6
"""Box-Muller with float32 intermediates against float64: |x| <= 6.7, a few ulp (2^-23) of that."""

GOLDEN_ADAIN = {"atol": 2e-5, "rel_l2": 3e-6}
"""The goldens' README. Measured 2.4e-7, 5.4e-8."""

GOLDEN_TEACHER_FORCED = {"atol": 1e-4, "rel_l2": 5e-5}
"""The goldens' README for one step from the golden's latents and UNet output. Measured 7.2e-7."""

GOLDEN_LATENTS_FINAL = {"atol": 1e-4, "rel_l2": 1e-4}
"""The goldens' README. Measured for the final AdaIN alone 6e-8."""

GOLDEN_INITIAL_ATOL = 1e-6
"""The goldens' README: noise mixing and the alpha tables, exact or 1 ulp. Measured 0."""
