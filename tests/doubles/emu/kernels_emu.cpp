// SPDX-License-Identifier: Apache-2.0
/* Every kernel of runtime/kernels, compiled for the CPU. */
#include "cuda_emu.h"

#include "lamp_kernels.cu"

EMU_EXPORT(lamp_latent_step_f16)
EMU_EXPORT(lamp_latent_step_f16_any)
EMU_EXPORT(lamp_latent_step_f32)
EMU_EXPORT(lamp_latent_step_f32_any)
EMU_EXPORT(lamp_begin_loop_f16)
EMU_EXPORT(lamp_begin_loop_f16_any)
EMU_EXPORT(lamp_begin_loop_f32)
EMU_EXPORT(lamp_begin_loop_f32_any)
EMU_EXPORT(lamp_posterior_sample_f16)
EMU_EXPORT(lamp_posterior_sample_f32)
EMU_EXPORT(lamp_first_frame_f16_f16)
EMU_EXPORT(lamp_first_frame_f32_f16)
EMU_EXPORT(lamp_first_frame_f32_f32)
EMU_EXPORT(lamp_model_input_f16)
EMU_EXPORT(lamp_model_input_f32)
EMU_EXPORT(lamp_decoder_input_f16)
EMU_EXPORT(lamp_decoder_input_f32)
EMU_EXPORT(lamp_hist_count_f16)
EMU_EXPORT(lamp_hist_count_f16_any)
EMU_EXPORT(lamp_hist_count_f32)
EMU_EXPORT(lamp_hist_count_f32_any)
EMU_EXPORT(lamp_hist_lut)
EMU_EXPORT(lamp_hist_apply_u8)
EMU_EXPORT(lamp_hist_apply_u8_any)
EMU_EXPORT(lamp_preview_f16)
EMU_EXPORT(lamp_preview_f32)

/* Philox alone: one counter, one key, four words. */
extern "C" void emu_philox(const unsigned* counter, const unsigned* key, unsigned* out) {
  const uint4 bits = lamp::philox4x32({counter[0], counter[1], counter[2], counter[3]}, {key[0], key[1]});
  out[0] = bits.x, out[1] = bits.y, out[2] = bits.z, out[3] = bits.w;
}

extern "C" unsigned emu_system_fences() { return ::emu::system_fences.load(); }
