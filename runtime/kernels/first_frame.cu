// SPDX-License-Identifier: Apache-2.0
/* first_frame.cu: conversion of network inputs: SDXL's image or a given one to the SD encoder's input, and the final
   latents to the decoder's input.
   Reference  runtime/algorithm/histogram.py uint8_frames(rounding="round"), runtime/media/image.py (cv2.resize at exactly 2:1)
   Layout     decoded (3, 2H, 2W) in [-1, 1]; pixels (2H, 2W, 3) uint8; image (3, H, W) in [-1, 1]
   Mapping    one thread per pixel of the small image: it rounds four pixels of the large one and averages them
   Rounding   half to even, as NumPy; (a + b + c + d + 2) >> 2, which equals OpenCV's bilinear at exactly 2:1
   Traffic    at 1024x640 fp32: 7.9 MB read, 2.0 + 2.0 MB written, once per video                                    */
#include "lamp_common.cuh"

namespace lamp {

/* Reports to the host if any thread of the block met a non-finite value; every thread must call it. */
__device__ __forceinline__ void report_not_finite(bool met, LampProgress* progress) {
  if (__syncthreads_or(met) && threadIdx.x == 0 && progress != nullptr) progress->image_not_finite = 1u;
}

/* Maps a level from 0..255 to [-1, 1]. fp16: two roundings, as in the official code. */
template <typename Out>
__device__ __forceinline__ Out model_value(int level) {
  const Out scaled = from_float<Out>(static_cast<float>(level) / 127.5f);
  return from_float<Out>(to_float(scaled) - 1.f);
}

template <typename In, typename Out>
__device__ __forceinline__ void first_frame(const In* decoded, unsigned char* pixels, Out* image,
                                            LampProgress* progress, int height, int width) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x, area = height * width;
  const int row = at / width, column = at % width;
  bool not_finite = false;
#pragma unroll
  for (int channel = 0; channel < 3 && at < area; ++channel) {
    int sum = 2;
#pragma unroll
    for (int y = 0; y < 2; ++y) {
      const int place = (2 * row + y) * 2 * width + 2 * column;
      float pair[2];
      load<2>(decoded + static_cast<long long>(channel) * 4 * area + place, pair);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        not_finite |= !is_finite(pair[x]);
        const int value = static_cast<int>(rintf(level(pair[x])));
        pixels[3LL * (place + x) + channel] = static_cast<unsigned char>(value);
        sum += value;
      }
    }
    image[static_cast<long long>(channel) * area + at] = model_value<Out>(sum >> 2);
  }
  report_not_finite(not_finite, progress);
}

/* pixels (H, W, 3) uint8 -> image (3, H, W) in [-1, 1]. One thread per pixel. */
template <typename Out>
__device__ __forceinline__ void model_input(const unsigned char* pixels, Out* image, int area) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= area) return;
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
    image[static_cast<long long>(channel) * area + at] = model_value<Out>(pixels[3LL * at + channel]);
  }
}

/* latents (C, F, H*W) fp32 -> out (F, C, H*W) / scaling_factor in the decoder's precision. Grid (blocks, C, F). */
template <typename T>
__device__ __forceinline__ void decoder_input(const float* latents, T* out, float scaling_factor, int hw) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x, c = blockIdx.y, f = blockIdx.z;
  if (p >= hw) return;
  const float x = latents[(static_cast<long long>(c) * gridDim.z + f) * hw + p];
  out[(static_cast<long long>(f) * gridDim.y + c) * hw + p] = from_float<T>(x / scaling_factor);
}

}  // namespace lamp

#define LAMP_FIRST_FRAME(NAME, IN, OUT)                                                                                \
  extern "C" __global__ void __launch_bounds__(256) lamp_first_frame_##NAME(                                           \
      const IN* decoded, unsigned char* pixels, OUT* image, LampProgress* progress, int height, int width) {           \
    lamp::first_frame(decoded, pixels, image, progress, height, width);                                                \
  }
LAMP_FIRST_FRAME(f16_f16, __half, __half)
LAMP_FIRST_FRAME(f32_f16, float, __half)
LAMP_FIRST_FRAME(f32_f32, float, float)

#define LAMP_MODEL_INPUT(NAME, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256) lamp_model_input_##NAME(                                           \
      const unsigned char* pixels, T* image, int area) {                                                               \
    lamp::model_input<T>(pixels, image, area);                                                                         \
  }
LAMP_MODEL_INPUT(f16, __half)
LAMP_MODEL_INPUT(f32, float)

#define LAMP_DECODER_INPUT(NAME, T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) lamp_decoder_input_##NAME(                                         \
      const float* latents, T* out, float scaling_factor, int hw) {                                                    \
    lamp::decoder_input<T>(latents, out, scaling_factor, hw);                                                          \
  }
LAMP_DECODER_INPUT(f16, __half)
LAMP_DECODER_INPUT(f32, float)
