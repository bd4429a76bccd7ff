// SPDX-License-Identifier: Apache-2.0
/* latent_step.cu: one denoising step in one launch: guidance, DDIM, AdaIN, the next UNet input, the next time row.
   Reference  runtime/algorithm/latents.py denoise_step
   Layout     latents (2, C, F, H*W) fp32: two buffers that alternate between steps, the last step writes buffer 0;
              noise_pred, sample (batch, C, F, H*W) in the UNet's precision, batch 2 = unconditional, conditional
   Mapping    grid (F, C): a block owns one channel of one frame and recomputes the moments of the frames that it is
              matched to, so no block waits for another. A thread keeps its first V values in registers and reads the
              values beyond blockDim.x * V again (from L1) in each pass
   AdaIN      every AdaIN is an affine map whose result has known moments, so a chain of them (frame 2 to frame 1 to
              frame 0, and the final one) is one map, computed from the moments before the first. It follows the
              official order, including eps, and differs from the step-by-step result only by rounding
   Ping-pong  a block reads its reference frame while that frame's block writes it: in place would be a race
   Traffic    at 16x40x64 fp16: 0.66 MB latents read, 0.66 written, 0.66 noise_pred read, 0.66 sample written;
              launch-bound
   Requires   V = 8: H*W % 8 == 0. blockDim.x % 32 == 0                                                              */
#include "lamp_common.cuh"

namespace lamp {

/* One channel of one frame before the step; `stepped`: whether this step denoises it. */
template <typename T>
struct Plane {
  const float* x;
  const T *uncond, *cond;   // uncond == nullptr: batch 1, no guidance
  bool stepped;
};

template <int V, typename T>
__device__ __forceinline__ void load_stepped(const Plane<T>& plane, const LampStepRow& row, int i, float (&x)[V]) {
  load<V>(plane.x + i, x);
  if (!plane.stepped) return;
  float eps[V];
  load<V>(plane.cond + i, eps);
  if (plane.uncond != nullptr) {
    float u[V];
    load<V>(plane.uncond + i, u);
#pragma unroll
    for (int j = 0; j < V; ++j) eps[j] = u[j] + row.guidance * (eps[j] - u[j]);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = row.cx * x[j] + row.ce * eps[j];
}

/* Calls f(i, values) for this thread's values of a plane: the first V are in `cached`, the others are read again. */
template <int V, typename T, typename F>
__device__ __forceinline__ void for_own_values(const Plane<T>& plane, const LampStepRow& row, int hw,
                                               const float (&cached)[V], F f) {
  const int first = threadIdx.x * V, stride = blockDim.x * V;
  if (first < hw) f(first, cached);
#pragma unroll 1
  for (int i = first + stride; i < hw; i += stride) {
    float x[V];
    load_stepped<V>(plane, row, i, x);
    f(i, x);
  }
}

struct Moments {
  float mean, variance;   // unbiased, as torch.var
};

/* The map x -> (x - center) * scale + mean, and the moments of its result. */
struct AdaIn {
  float center, scale;
  Moments out;

  __device__ __forceinline__ explicit AdaIn(Moments content) : center(content.mean), scale(1.f), out(content) {}

  __device__ __forceinline__ void match(Moments style, float eps) {
    const float ratio = sqrtf(style.variance + eps) / sqrtf(out.variance + eps);
    scale *= ratio;
    out = {style.mean, out.variance * ratio * ratio};
  }
};

template <typename T, int V>
__device__ __forceinline__ void latent_step(const T* noise_pred, float* latents, T* sample, const LampStepRow* rows,
                                            LampLoopState* state, LampProgress* progress, const unsigned* time_table,
                                            unsigned* time_row, int time_words, int hw, int batch, float eps) {
  constexpr int kOwn = 0, kOne = 1, kZero = 2, kPlanes = 3;
  __shared__ float scratch[kPlanes][kWarp];

  const unsigned step = *static_cast<volatile unsigned*>(&state->step);
  const unsigned num_steps = *static_cast<volatile unsigned*>(&state->num_steps);
  if (step >= num_steps) return;   // a replay after the last step does nothing

  const LampStepRow row = rows[step];
  const int f = blockIdx.x, c = blockIdx.y;
  const long long size = static_cast<long long>(gridDim.x) * gridDim.y * hw;
  const long long own = (static_cast<long long>(c) * gridDim.x + f) * hw;
  const unsigned left = num_steps - step;
  const float* x_in = latents + (left & 1u) * size;
  float* x_out = latents + ((left - 1u) & 1u) * size;

  const bool all_to_zero = row.mode & (kAllToFrame0 | kFinalToFrame0);
  const bool to_one = f > 1 && (row.mode & kRestToFrame1);
  const bool one_to_zero = (f == 1 || to_one) && (row.mode & kFrame1ToFrame0);
  const bool to_zero = f > 0 && (all_to_zero || one_to_zero);
  const bool needed[kPlanes] = {to_one || to_zero, to_one, to_zero};

  Plane<T> plane[kPlanes];
  float x[kPlanes][V];
  float sum[kPlanes] = {};
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    const int frame = k == kOwn ? f : k == kOne ? 1 : 0;
    const long long at = (static_cast<long long>(c) * gridDim.x + frame) * hw;
    plane[k] = {x_in + at, batch == 2 ? noise_pred + at : nullptr, noise_pred + (batch - 1) * size + at,
                frame > 0 || (row.mode & kStepFrame0)};
    const int first = threadIdx.x * V;
    if (first < hw && (k == kOwn || needed[k])) load_stepped<V>(plane[k], row, first, x[k]);
  }

  AdaIn map({0.f, 0.f});
  if (needed[kOwn]) {   // uniform in the block, so all of its threads reach the barriers
#pragma unroll
    for (int k = 0; k < kPlanes; ++k)
      if (needed[k])
        for_own_values<V>(plane[k], row, hw, x[k], [&](int, const float (&v)[V]) {
#pragma unroll
          for (int j = 0; j < V; ++j) sum[k] += v[j];
        });
    block_sum(sum, scratch);

    float squares[kPlanes] = {};
#pragma unroll
    for (int k = 0; k < kPlanes; ++k)
      if (needed[k]) {
        const float mean = sum[k] / hw;
        for_own_values<V>(plane[k], row, hw, x[k], [&](int, const float (&v)[V]) {
#pragma unroll
          for (int j = 0; j < V; ++j) squares[k] += (v[j] - mean) * (v[j] - mean);
        });
      }
    block_sum(squares, scratch);

    const auto moments = [&](int k) { return Moments{sum[k] / hw, squares[k] / (hw - 1)}; };
    map = AdaIn(moments(kOwn));
    const Moments zero = moments(kZero);
    if (to_one) {
      AdaIn one(moments(kOne));
      if (one_to_zero) one.match(zero, eps);
      map.match(one.out, eps);
    } else if (one_to_zero) {
      map.match(zero, eps);
    }
    if (row.mode & kAllToFrame0) map.match(zero, eps);
    if (row.mode & kFinalToFrame0) map.match(zero, eps);
  }

  bool overflow = false;
  for_own_values<V>(plane[kOwn], row, hw, x[kOwn], [&](int i, const float (&v)[V]) {
    float y[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      y[j] = needed[kOwn] ? (v[j] - map.center) * map.scale + map.out.mean : v[j];
      overflow |= !(fabsf(y[j]) <= kLargest<T>);
    }
    store<V>(x_out + own + i, y);
    store<V>(sample + own + i, y);
    if (batch == 2) store<V>(sample + size + own + i, y);
  });
  if (f == 0 && c == 0 && left > 1) copy_row(time_table, time_row, step + 1, time_words);

  overflow = __syncthreads_or(overflow);   // also a barrier: every thread of the block has read state
  if (threadIdx.x == 0) {
    if (overflow) atomicMin(&state->first_overflow, step);
    __threadfence();
    if (atomicAdd(&state->arrived, 1u) == gridDim.x * gridDim.y - 1) {   // the last block: no other reads state now
      __threadfence();
      state->arrived = 0;
      state->step = step + 1;
      report(progress, step + 1, *static_cast<volatile unsigned*>(&state->first_overflow));
    }
  }
}

}  // namespace lamp

/* A grid has tens of blocks, so one per multiprocessor suffices; with more as target, ptxas spills registers. */
#define LAMP_LATENT_STEP(NAME, T, V)                                                                                   \
  extern "C" __global__ void __launch_bounds__(512, 1) lamp_latent_step_##NAME(                                        \
      const T* noise_pred, float* latents, T* sample, const LampStepRow* rows, LampLoopState* state,                   \
      LampProgress* progress, const unsigned* time_table, unsigned* time_row, int time_words, int hw, int batch,       \
      float eps) {                                                                                                     \
    lamp::latent_step<T, V>(noise_pred, latents, sample, rows, state, progress, time_table, time_row, time_words, hw,  \
                            batch, eps);                                                                               \
  }
LAMP_LATENT_STEP(f16, __half, 8)
LAMP_LATENT_STEP(f16_any, __half, 1)
LAMP_LATENT_STEP(f32, float, 8)
LAMP_LATENT_STEP(f32_any, float, 1)
