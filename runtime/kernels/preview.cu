// SPDX-License-Identifier: Apache-2.0
/* preview.cu: a picture of a running loop: the clean latents that a step estimates, mapped linearly to colours.
   Reference  runtime/algorithm/preview.py preview_frames
   Layout     latents (4, F, H*W) fp32 before the step; noise_pred (batch, 4, F, H*W) in the UNet's precision, batch 2 =
              unconditional, conditional; colours (3, 5): weights, bias; frames (F, H*W, 3) uint8 in mapped host memory
   Mapping    one thread per pixel of all frames; a block collects its bytes in shared memory and writes them as whole
              words, since single bytes would cross the bus one by one
   Launched   between two replays of the captured step, and only when a preview is due
   Traffic    at 16x40x64 fp16: 0.66 MB of latents and 0.66 of noise_pred read, 0.12 written to the host
   Requires   blockDim.x = 256                                                                                       */
#include "lamp_common.cuh"

namespace lamp {

constexpr int kPreviewThreads = 256, kPreviewChannels = 4;

template <typename T>
__device__ __forceinline__ void preview(const float* latents, const T* noise_pred, const float* colours,
                                        unsigned char* frames, float keep, float remove, float guidance,
                                        int first_stepped, int num_frames, int hw, int batch) {
  __shared__ unsigned words[kPreviewThreads * 3 / 4];
  unsigned char* bytes = reinterpret_cast<unsigned char*>(words);
  const int tid = threadIdx.x, pixels = num_frames * hw, begin = blockIdx.x * kPreviewThreads, at = begin + tid;

  if (at < pixels) {
    float x[kPreviewChannels];
#pragma unroll
    for (int c = 0; c < kPreviewChannels; ++c) {
      const long long place = static_cast<long long>(c) * pixels + at;
      x[c] = latents[place];
      if (at / hw < first_stepped) continue;   // a video's frame 0 is given
      const T* cond = noise_pred + static_cast<long long>(batch - 1) * kPreviewChannels * pixels;
      float eps = to_float(cond[place]);
      if (batch == 2) {
        const float u = to_float(noise_pred[place]);
        eps = u + guidance * (eps - u);
      }
      x[c] = keep * x[c] + remove * eps;
    }
#pragma unroll
    for (int colour = 0; colour < 3; ++colour) {
      const float* map = colours + colour * (kPreviewChannels + 1);
      float value = map[kPreviewChannels];
#pragma unroll
      for (int c = 0; c < kPreviewChannels; ++c) value += map[c] * x[c];
      bytes[3 * tid + colour] = static_cast<unsigned char>(rintf(level(value)));
    }
  }
  __syncthreads();

  const int left = 3 * (pixels - begin), size = left < 3 * kPreviewThreads ? left : 3 * kPreviewThreads;
  unsigned char* out = frames + 3LL * begin;
  for (int i = tid; i < size / 4; i += kPreviewThreads) reinterpret_cast<unsigned*>(out)[i] = words[i];
  if (tid < size % 4) out[size / 4 * 4 + tid] = bytes[size / 4 * 4 + tid];
}

}  // namespace lamp

#define LAMP_PREVIEW(NAME, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) lamp_preview_##NAME(                                               \
      const float* latents, const T* noise_pred, const float* colours, unsigned char* frames, float keep,              \
      float remove, float guidance, int first_stepped, int num_frames, int hw, int batch) {                            \
    lamp::preview<T>(latents, noise_pred, colours, frames, keep, remove, guidance, first_stepped, num_frames, hw,      \
                     batch);                                                                                           \
  }
LAMP_PREVIEW(f16, __half)
LAMP_PREVIEW(f32, float)
