// SPDX-License-Identifier: Apache-2.0
/* lamp_kernels.cu: every kernel in one translation unit, so that the headers are parsed once per architecture. */
#include "hist_match.cu"
#include "latent_step.cu"
#include "noise.cu"
#include "preview.cu"
