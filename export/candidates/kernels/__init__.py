# SPDX-License-Identifier: Apache-2.0
"""Hand-written kernels in Triton, which AOTInductor compiles into packages. They need `triton`, which comes
with torch's CUDA builds. Unproven: they ran under Triton's interpreter only, and are off in every build."""
