// SPDX-License-Identifier: Apache-2.0
/* noise.cu: start of a denoising loop (noise, shared-noise mix, first frame, loop state), and the sample of the VAE
   posterior.
   Reference  runtime/algorithm/noise.py standard_normal, runtime/algorithm/latents.py mix_noise, posterior_sample
   Numbers    Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (block, 0, frame, purpose): block i gives the
              values 4i..4i+3 of the frame's flattened (C, H*W). Bits equal NumPy's; Box-Muller in fp32
   Layout     latents (2, C, F, H*W) fp32: the buffer that step 0 reads (num_steps odd: the second) is written;
              sample (batch, C, F, H*W); given noise (C, F, H*W), base noise and first frame (C, 1, H*W), all fp32
   Mapping    grid (blocks, F): one thread per Philox block of four values
   Traffic    at 16x40x64 fp16: 0.66 MB written to the latents, 0.66 MB to the sample; launch-bound
   Requires   V = 4: H*W % 4 == 0                                                                                    */
#include "lamp_common.cuh"

namespace lamp {

constexpr int kDraw = 4;   // values in a Philox block

__device__ __forceinline__ uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

/* Two N(0, 1) values from two words. u lies in (0, 1]; the angle is 2 pi b / 2^32. */
__device__ __forceinline__ float2 box_muller(unsigned a, unsigned b) {
  const float u = (static_cast<float>(a) + 0.5f) * 2.3283064365386963e-10f;   // 2^-32
  const float r = sqrtf(-2.f * logf(u));
  float sine, cosine;
  sincospif(static_cast<float>(b) * 4.6566128730773926e-10f, &sine, &cosine);   // 2^-31
  return make_float2(r * cosine, r * sine);
}

__device__ __forceinline__ void draw(unsigned long long seed, int purpose, int frame, unsigned block,
                                     float (&out)[kDraw]) {
  const uint4 bits = philox4x32(make_uint4(block, 0u, static_cast<unsigned>(frame), static_cast<unsigned>(purpose)),
                                make_uint2(static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32)));
  const float2 p = box_muller(bits.x, bits.y), q = box_muller(bits.z, bits.w);
  out[0] = p.x;
  out[1] = p.y;
  out[2] = q.x;
  out[3] = q.y;
}

/* Offset of value i of a frame. The four values of a Philox block are contiguous if V == 4, otherwise they may cross
   rows and channels. */
struct FramePlace {
  long long channel_stride, start;
  int hw;
  __device__ __forceinline__ long long operator()(int i) const { return i / hw * channel_stride + start + i % hw; }
};

template <int V, typename T>
__device__ __forceinline__ void load_values(const T* p, FramePlace place, int i, int count, float (&out)[kDraw]) {
  if constexpr (V == kDraw) {
    load<V>(p + place(i), out);
  } else {
#pragma unroll
    for (int j = 0; j < kDraw; ++j) out[j] = i + j < count ? to_float(p[place(i + j)]) : 0.f;
  }
}

template <int V, typename T>
__device__ __forceinline__ void store_values(T* p, FramePlace place, int i, int count, const float (&in)[kDraw]) {
  if constexpr (V == kDraw) {
    store<V>(p + place(i), in);
  } else {
#pragma unroll
    for (int j = 0; j < kDraw; ++j)
      if (i + j < count) p[place(i + j)] = from_float<T>(in[j]);
  }
}

template <typename T, int V>
__device__ __forceinline__ void begin_loop(const float* noise, const float* base_noise, const float* first_frame,
                                           float* latents, T* sample, LampLoopState* state, LampProgress* progress,
                                           const unsigned* time_table, unsigned* time_row, int time_words,
                                           unsigned long long seed, int purpose, int base_purpose, float base_weight,
                                           int base_frames, int num_steps, int channels, int hw, int batch) {
  const int f = blockIdx.y, frames = gridDim.y, count = channels * hw;
  const long long size = static_cast<long long>(frames) * count;
  const int block = blockIdx.x * blockDim.x + threadIdx.x, i = block * kDraw;
  const FramePlace place{static_cast<long long>(frames) * hw, static_cast<long long>(f) * hw, hw};

  if (i < count) {
    float x[kDraw];
    if (f == 0 && first_frame != nullptr) {
      load_values<V>(first_frame, {hw, 0, hw}, i, count, x);
    } else {
      if (noise != nullptr) load_values<V>(noise, place, i, count, x);
      else draw(seed, purpose, f, block, x);
      if (base_weight != 0.f) {
        float base[kDraw];
        if (base_noise != nullptr)
          load_values<V>(base_noise, {static_cast<long long>(base_frames) * hw, 0, hw}, i, count, base);
        else
          draw(seed, base_purpose, 0, block, base);
#pragma unroll
        for (int j = 0; j < kDraw; ++j) x[j] = base_weight * base[j] + (1.f - base_weight) * x[j];
      }
    }
    store_values<V>(latents + (num_steps & 1) * size, place, i, count, x);
    store_values<V>(sample, place, i, count, x);
    if (batch == 2) store_values<V>(sample + size, place, i, count, x);
  }

  if (blockIdx.x == 0 && f == 0) {
    copy_row(time_table, time_row, 0, time_words);
    if (threadIdx.x == 0) {
      *state = {0u, static_cast<unsigned>(num_steps), 0u, kNoStep};
      report(progress, 0u, kNoStep);
      if (progress != nullptr) progress->image_not_finite = 0u;
    }
  }
}

/* out = (mean + exp(clamp(logvar, -30, 20) / 2) * n) * scaling_factor; NaN where logvar is not finite, which the clamp
   would hide. One thread per Philox block. */
template <typename T>
__device__ __forceinline__ void posterior_sample(const T* mean, const T* logvar, const float* noise, float* out,
                                                 unsigned long long seed, int purpose, float scaling_factor,
                                                 int count) {
  const int block = blockIdx.x * blockDim.x + threadIdx.x, i = block * kDraw;
  if (i >= count) return;
  float n[kDraw];
  if (noise == nullptr) draw(seed, purpose, 0, block, n);
#pragma unroll
  for (int j = 0; j < kDraw; ++j)
    if (i + j < count) {
      const float log_variance = to_float(logvar[i + j]);
      const float deviation = is_finite(log_variance) ? expf(0.5f * fminf(fmaxf(log_variance, -30.f), 20.f))
                                                      : log_variance - log_variance;
      const float value = noise != nullptr ? noise[i + j] : n[j];
      out[i + j] = (to_float(mean[i + j]) + deviation * value) * scaling_factor;
    }
}

}  // namespace lamp

#define LAMP_BEGIN_LOOP(NAME, T, V)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) lamp_begin_loop_##NAME(                                            \
      const float* noise, const float* base_noise, const float* first_frame, float* latents, T* sample,                \
      LampLoopState* state, LampProgress* progress, const unsigned* time_table, unsigned* time_row, int time_words,    \
      unsigned long long seed, int purpose, int base_purpose, float base_weight, int base_frames, int num_steps,       \
      int channels, int hw, int batch) {                                                                               \
    lamp::begin_loop<T, V>(noise, base_noise, first_frame, latents, sample, state, progress, time_table, time_row,     \
                           time_words, seed, purpose, base_purpose, base_weight, base_frames, num_steps, channels, hw, \
                           batch);                                                                                     \
  }
LAMP_BEGIN_LOOP(f16, __half, 4)
LAMP_BEGIN_LOOP(f16_any, __half, 1)
LAMP_BEGIN_LOOP(f32, float, 4)
LAMP_BEGIN_LOOP(f32_any, float, 1)

#define LAMP_POSTERIOR_SAMPLE(NAME, T)                                                                                 \
  extern "C" __global__ void __launch_bounds__(256) lamp_posterior_sample_##NAME(                                      \
      const T* mean, const T* logvar, const float* noise, float* out, unsigned long long seed, int purpose,            \
      float scaling_factor, int count) {                                                                               \
    lamp::posterior_sample<T>(mean, logvar, noise, out, seed, purpose, scaling_factor, count);                         \
  }
LAMP_POSTERIOR_SAMPLE(f16, __half)
LAMP_POSTERIOR_SAMPLE(f32, float)
