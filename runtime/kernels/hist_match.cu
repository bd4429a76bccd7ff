// SPDX-License-Identifier: Apache-2.0
/* hist_match.cu: decoded frames to uint8, and histogram matching to frame 0, in three launches.
   Reference  runtime/algorithm/histogram.py uint8_frames, match_histograms
   Layout     image (F, 3, P) from the decoder, P pixels; frames (F, P, 3) uint8; counts (F, B, 3, 256); lut (F, 3, 256)
   Mapping    count: grid (B, F), each block quantises its part of a frame and writes that part's three histograms, so
              nothing has to be zeroed before, also after an aborted video; lut: grid (F - 1, 3), one table per block;
              apply: grid (B, F - 1), in place, frame 0 is the reference and unchanged
   Modes      lut[v] = first u with cdf_0[u] >= cdf_f[v], otherwise 255. "official": float64 densities n / P added in
              bin order, bit for bit equal to np.cumsum(np.histogram(..., density=True)[0]) with its rounding.
              "exact": the same sums over n itself (divisor 1), which are exact
   Traffic    at 16x320x512 fp16: 15.7 MB read and 7.9 written, then 7.9 read and 7.9 written
   Requires   V = 8: P % 8 == 0                                                                                      */
#include "first_frame.cu"

namespace lamp {

constexpr int kBins = 256, kColours = 3;
constexpr int kCopies = 8;   // copies of a block's histograms, selected by lane, which reduces atomic contention

/* Converts V pixels of planes (3, P) to levels and also writes them to `frame` (P, 3). */
template <int V, typename T>
__device__ __forceinline__ void levels_of(const T* planes, long long pixels, int pixel,
                                          unsigned char (&out)[V][kColours], unsigned char* frame, bool& not_finite) {
#pragma unroll
  for (int c = 0; c < kColours; ++c) {
    float x[V];
    load<V>(planes + c * pixels + pixel, x);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      not_finite |= !is_finite(x[j]);
      out[j][c] = static_cast<unsigned char>(level(x[j]));   // truncated
    }
  }
  Pack<unsigned char, V> pack[kColours];
#pragma unroll
  for (int k = 0; k < V * kColours; ++k) pack[k / V].v[k % V] = out[k / kColours][k % kColours];
#pragma unroll
  for (int c = 0; c < kColours; ++c) reinterpret_cast<Pack<unsigned char, V>*>(frame + 3LL * pixel)[c] = pack[c];
}

template <int V, typename T>
__device__ __forceinline__ void hist_count(const T* planes, unsigned char* frame, unsigned* counts,
                                           LampProgress* progress, int pixels) {
  __shared__ unsigned part[kColours][kCopies][kBins + 1];   // + 1: copies of one bin lie in different banks
  const int tid = threadIdx.x, threads = blockDim.x, copy = tid % kCopies;
  for (int i = tid; i < kColours * kCopies * (kBins + 1); i += threads) (&part[0][0][0])[i] = 0;
  __syncthreads();
  bool not_finite = false;
  for (int p = (blockIdx.x * threads + tid) * V; p < pixels; p += gridDim.x * threads * V) {
    unsigned char value[V][kColours];
    levels_of<V>(planes, pixels, p, value, frame, not_finite);
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int c = 0; c < kColours; ++c) atomicAdd(&part[c][copy][value[j][c]], 1u);
  }
  report_not_finite(not_finite, progress);   // also a barrier: all counts are complete
  unsigned* out = counts + (static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x) * kColours * kBins;
  for (int i = tid; i < kColours * kBins; i += threads) {
    unsigned n = 0;
#pragma unroll
    for (int k = 0; k < kCopies; ++k) n += part[i / kBins][k][i % kBins];
    out[i] = n;
  }
}

/* CDFs of one colour in one frame and in frame 0, and the lookup table between them. 256 threads, one per level. */
__device__ __forceinline__ void hist_lut(const unsigned* counts, unsigned char* lut, int parts, double divisor) {
  __shared__ double cdf[2][kBins];   // of frame 0, of frame f
  const int f = blockIdx.x + 1, colour = blockIdx.y, bin = threadIdx.x;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const unsigned* part = counts + (static_cast<long long>(which ? f : 0) * parts * kColours + colour) * kBins + bin;
    unsigned n = 0;
    for (int b = 0; b < parts; ++b) n += part[static_cast<long long>(b) * kColours * kBins];
    cdf[which][bin] = static_cast<double>(n) / divisor;
  }
  __syncthreads();
  if (bin % kWarp == 0 && bin / kWarp < 2) {   // running sums in bin order, one each in two warps
    double* sums = cdf[bin / kWarp];
    double sum = 0.0;
#pragma unroll 16
    for (int b = 0; b < kBins; ++b) {
      sum += sums[b];
      sums[b] = sum;
    }
  }
  __syncthreads();
  int low = 0, high = kBins;   // binary search of the first level whose cdf is not below, in [low, high]
  while (low < high) {
    const int middle = (low + high) / 2;
    if (cdf[0][middle] < cdf[1][bin]) low = middle + 1;
    else high = middle;
  }
  lut[(static_cast<long long>(f) * kColours + colour) * kBins + bin] = static_cast<unsigned char>(low < 255 ? low : 255);
}

template <int V>
__device__ __forceinline__ void hist_apply(const unsigned char* lut, unsigned char* frames, int pixels) {
  __shared__ unsigned char table[kColours][kBins];
  const int f = blockIdx.y + 1, tid = threadIdx.x, threads = blockDim.x;
  for (int i = tid; i < kColours * kBins; i += threads)
    (&table[0][0])[i] = lut[static_cast<long long>(f) * kColours * kBins + i];
  __syncthreads();
  unsigned char* frame = frames + static_cast<long long>(f) * pixels * kColours;
  for (int p = (blockIdx.x * threads + tid) * V; p < pixels; p += gridDim.x * threads * V) {
    Pack<unsigned char, V>* at = reinterpret_cast<Pack<unsigned char, V>*>(frame + 3LL * p);
    Pack<unsigned char, V> pack[kColours];
#pragma unroll
    for (int c = 0; c < kColours; ++c) pack[c] = at[c];
#pragma unroll
    for (int k = 0; k < V * kColours; ++k) pack[k / V].v[k % V] = table[k % kColours][pack[k / V].v[k % V]];
#pragma unroll
    for (int c = 0; c < kColours; ++c) at[c] = pack[c];
  }
}

}  // namespace lamp

#define LAMP_HIST_COUNT(NAME, T, V)                                                                                  \
  extern "C" __global__ void __launch_bounds__(256) lamp_hist_count_##NAME(                                            \
      const T* image, unsigned char* frames, unsigned* counts, LampProgress* progress, int pixels) {                   \
    const long long frame = static_cast<long long>(blockIdx.y) * 3 * pixels;                                           \
    lamp::hist_count<V>(image + frame, frames + frame, counts, progress, pixels);                                      \
  }
LAMP_HIST_COUNT(f16, __half, 8)
LAMP_HIST_COUNT(f16_any, __half, 1)
LAMP_HIST_COUNT(f32, float, 8)
LAMP_HIST_COUNT(f32_any, float, 1)

extern "C" __global__ void __launch_bounds__(256)
lamp_hist_lut(const unsigned* counts, unsigned char* lut, int parts, double divisor) {
  lamp::hist_lut(counts, lut, parts, divisor);
}

#define LAMP_HIST_APPLY(NAME, V)                                                                                       \
  extern "C" __global__ void __launch_bounds__(256) lamp_hist_apply_##NAME(                                            \
      const unsigned char* lut, unsigned char* frames, int pixels) {                                                   \
    lamp::hist_apply<V>(lut, frames, pixels);                                                                          \
  }
LAMP_HIST_APPLY(u8, 8)
LAMP_HIST_APPLY(u8_any, 1)
