// SPDX-License-Identifier: Apache-2.0
/* lamp_common.cuh: code common to the kernels: packed access, block sums, the state of a denoising loop.
   Compiles with nvcc, NVRTC and, through tests/doubles/emu/cuda_emu.h, g++: use only what that emulator provides.   */
#pragma once
#include <cuda_fp16.h>

/* One step of the loop, written by the host before the loop starts. In NumPy: runtime/algorithm/latents.py STEP_ROW. */
struct LampStepRow {
  float cx, ce;     // x_prev = cx * x + ce * noise_pred
  float guidance;   // noise_pred = u + guidance * (c - u)
  unsigned mode;    // lamp::Mode bits
};

/* State of the loop, in device memory. begin_loop resets it, latent_step's last block advances it. */
struct LampLoopState {
  unsigned step;           // the next step of latent_step
  unsigned num_steps;
  unsigned arrived;        // blocks that have finished this step
  unsigned first_overflow; // first step whose latents the UNet's input type cannot hold, or kNoStep
};

/* Status for the host, in mapped pinned memory; begin_loop resets it. */
struct alignas(8) LampProgress {
  unsigned steps_done, first_overflow;
  unsigned image_not_finite;   // 1 once a decoder's image held NaN or infinity
  unsigned unused;
};

namespace lamp {

/* Operations of a step after DDIM, in this order. In NumPy: runtime/algorithm/latents.py StepMode. */
enum Mode : unsigned {
  kFrame1ToFrame0 = 1,   // AdaIN of frame 1 to frame 0
  kRestToFrame1 = 2,     // AdaIN of frames 2.. to frame 1, after the line above
  kAllToFrame0 = 4,      // AdaIN of frames 1.. to frame 0
  kFinalToFrame0 = 8,    // AdaIN of frames 1.. to frame 0 once more: the official code's after the loop
  kStepFrame0 = 16,      // frame 0 is denoised too (the image loop; a video's frame 0 is given)
};

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kNoStep = 0xffffffffu;
constexpr int kWarp = 32;

/* V values in one access of V * sizeof(T) bytes (the compiler splits what exceeds 16). */
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T v[V];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

/* Largest finite magnitude of T. */
template <typename T>
constexpr float kLargest = 3.402823466e38f;
template <>
constexpr float kLargest<__half> = 65504.f;

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= kLargest<float>; }

/* Maps a colour from [-1, 1] to 0..255 without rounding. NaN becomes 0. */
__device__ __forceinline__ float level(float x) {
  return fminf(fmaxf(x / 2.f + 0.5f, 0.f), 1.f) * 255.f;
}

/* p must be aligned to V * sizeof(T) bytes. */
template <int V, typename T>
__device__ __forceinline__ void load(const T* p, float (&out)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = to_float(pack.v[j]);
}

template <int V, typename T>
__device__ __forceinline__ void store(T* p, const float (&in)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = from_float<T>(in[j]);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

/* Sum over the lanes of a full warp, the same bits in every lane (a butterfly of commutative additions). */
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

/* Replaces each v[i] by its sum over the block. blockDim.x must be a multiple of 32. `scratch` is free on return. */
template <int N>
__device__ __forceinline__ void block_sum(float (&v)[N], float (&scratch)[N][kWarp]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = warp_sum(v[i]);
    if (lane == 0) scratch[i][warp] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = warp_sum(lane < warps ? scratch[i][lane] : 0.f);
  __syncthreads();
}

/* Copies row `row` of a table of 4-byte words; every thread of one block must call it. */
__device__ __forceinline__ void copy_row(const unsigned* table, unsigned* out, unsigned row, int words) {
  for (int i = threadIdx.x; i < words; i += blockDim.x) out[i] = table[static_cast<long long>(row) * words + i];
}

/* One 8-byte store, so that the host never sees half of it, after everything that was written before it. */
__device__ __forceinline__ void report(LampProgress* progress, unsigned steps_done, unsigned first_overflow) {
  if (progress == nullptr) return;
  __threadfence_system();
  *reinterpret_cast<volatile unsigned long long*>(progress) =
      static_cast<unsigned long long>(first_overflow) << 32 | steps_done;
}

}  // namespace lamp
