// SPDX-License-Identifier: Apache-2.0
/* Runs every kernel on small inputs, through its vectors and its general path: built with -fsanitize=thread it is a
   race check, with -fsanitize=address,undefined a memory check. The Python tests check results.                      */
#include <cstdio>
#include <tuple>
#include <vector>

#include "kernels_emu.cpp"

namespace {

int failures = 0;

template <class... P, class... A>
void go(const char* name, void (*kernel)(P...), dim3 grid, unsigned threads, unsigned seed, A... args) {
  std::tuple<P...> values{static_cast<P>(args)...};
  try {
    emu::launch(grid, {threads, 1, 1}, seed, [&] { std::apply(kernel, values); });
  } catch (const std::exception& e) {
    std::printf("%s: %s\n", name, e.what());
    ++failures;
  }
}
#define GO(kernel, ...) go(#kernel, kernel, __VA_ARGS__)

/* Sizes fit exactly, and the vectors' data is aligned as on a device. */
template <class T>
struct Array {
  explicit Array(size_t n, double scale = 1.0) : size(n), data(new(std::align_val_t{64}) T[n]) {
    for (size_t i = 0; i < n; ++i) data[i] = static_cast<T>(static_cast<float>(i * 31 % 97) * scale);
  }
  ~Array() { operator delete[](data, std::align_val_t{64}); }
  Array(const Array&) = delete;
  operator T*() { return data; }
  size_t size;
  T* data;
};

template <class T, class Step, class Begin>
void run_loop(Step step, Begin begin, int hw, unsigned threads, unsigned seed) {
  constexpr unsigned kFrames = 4, kChannels = 2;
  constexpr int kSteps = 5, kWords = 3;
  const size_t size = size_t{kChannels} * kFrames * hw;
  Array<T> noise_pred(2 * size, 0.01), sample(2 * size);
  Array<float> latents(2 * size), first_frame(size_t{kChannels} * hw), base(size_t{kChannels} * hw);
  Array<unsigned> table(kSteps * kWords), row(kWords);
  LampStepRow rows[kSteps];
  const unsigned modes[kSteps] = {0u, lamp::kRestToFrame1, lamp::kFrame1ToFrame0 | lamp::kRestToFrame1,
                                  lamp::kAllToFrame0 | lamp::kFinalToFrame0, lamp::kStepFrame0};
  for (int i = 0; i < kSteps; ++i) rows[i] = {0.9f, 0.1f, 7.5f, modes[i]};
  LampLoopState state;
  LampProgress progress;
  const unsigned blocks = (kChannels * hw / 4 + 256) / 256;
  for (int given = 0; given < 2; ++given) {
    begin(dim3{blocks, kFrames, 1}, 256u, seed, given ? latents.data : nullptr, given ? base.data : nullptr,
          first_frame.data, latents.data, sample.data, &state, &progress, table.data, row.data, kWords, 7ull, 2, 3,
          0.2f, 1, kSteps, static_cast<int>(kChannels), hw, 2);
    for (int i = 0; i <= kSteps; ++i)
      step(dim3{kFrames, kChannels, 1}, threads, seed + i, noise_pred.data, latents.data, sample.data, rows, &state,
           &progress, table.data, row.data, kWords, hw, 2, 1e-8f);
    if (state.step != kSteps || progress.steps_done != kSteps) {
      std::printf("the loop stands at step %u\n", state.step);
      ++failures;
    }
  }
}

template <class T, class Count, class Apply>
void run_histograms(Count count, Apply apply, int pixels, unsigned seed) {
  constexpr unsigned kFrames = 3, kParts = 2;
  Array<T> image(size_t{3} * kFrames * pixels, 0.02);
  Array<unsigned char> frames(size_t{3} * kFrames * pixels), lut(size_t{3} * kFrames * 256);
  Array<unsigned> counts(size_t{3} * kFrames * kParts * 256);
  LampProgress progress{};
  count(dim3{kParts, kFrames, 1}, 256u, seed, image.data, frames.data, counts.data, &progress, pixels);
  GO(lamp_hist_lut, dim3{kFrames - 1, 3, 1}, 256u, seed, counts.data, lut.data, static_cast<int>(kParts),
     static_cast<double>(pixels));
  apply(dim3{kParts, kFrames - 1, 1}, 256u, seed, lut.data, frames.data, pixels);
}

#define CALL(kernel) [](auto... a) { GO(kernel, a...); }

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 2; ++seed) {
    run_loop<__half>(CALL(lamp_latent_step_f16), CALL(lamp_begin_loop_f16), 40, 32, seed);
    run_loop<__half>(CALL(lamp_latent_step_f16), CALL(lamp_begin_loop_f16), 520, 96, seed);
    run_loop<float>(CALL(lamp_latent_step_f32), CALL(lamp_begin_loop_f32), 792, 64, seed);
    run_loop<__half>(CALL(lamp_latent_step_f16_any), CALL(lamp_begin_loop_f16_any), 35, 64, seed);
    run_loop<float>(CALL(lamp_latent_step_f32_any), CALL(lamp_begin_loop_f32_any), 151, 96, seed);

    run_histograms<__half>(CALL(lamp_hist_count_f16), CALL(lamp_hist_apply_u8), 4200, seed);
    run_histograms<float>(CALL(lamp_hist_count_f32), CALL(lamp_hist_apply_u8), 520, seed);
    run_histograms<__half>(CALL(lamp_hist_count_f16_any), CALL(lamp_hist_apply_u8_any), 777, seed);
    run_histograms<float>(CALL(lamp_hist_count_f32_any), CALL(lamp_hist_apply_u8_any), 777, seed);

    constexpr int kHeight = 7, kWidth = 43, kArea = kHeight * kWidth, kCount = 4 * 35;
    Array<float> decoded(12 * kArea, 0.02), image(3 * kArea), mean(kCount), latents(4 * 3 * 35), out(kCount);
    Array<__half> decoded16(12 * kArea, 0.02), image16(3 * kArea), mean16(kCount), input16(4 * 3 * 35);
    Array<float> input(4 * 3 * 35);
    Array<unsigned char> pixels(12 * kArea);
    LampProgress progress{};
    const dim3 area{2, 1, 1}, latent{1, 4, 3};
    GO(lamp_first_frame_f32_f32, area, 256u, seed, decoded.data, pixels.data, image.data, &progress, kHeight, kWidth);
    GO(lamp_first_frame_f32_f16, area, 256u, seed, decoded.data, pixels.data, image16.data, &progress, kHeight, kWidth);
    GO(lamp_first_frame_f16_f16, area, 256u, seed, decoded16.data, pixels.data, image16.data, &progress, kHeight,
       kWidth);
    GO(lamp_model_input_f32, area, 256u, seed, pixels.data, image.data, kArea);
    GO(lamp_model_input_f16, area, 256u, seed, pixels.data, image16.data, kArea);
    GO(lamp_decoder_input_f32, latent, 256u, seed, latents.data, input.data, 0.18215f, 35);
    GO(lamp_decoder_input_f16, latent, 256u, seed, latents.data, input16.data, 0.18215f, 35);
    Array<float> noise_pred(2 * 4 * 3 * 151), colours(15), before(4 * 3 * 151);
    Array<__half> noise_pred16(2 * 4 * 3 * 151);
    Array<unsigned char> shown(3 * 3 * 151);
    GO(lamp_preview_f32, area, 256u, seed, before.data, noise_pred.data, colours.data, shown.data, 2.f, -1.f, 9.f, 1, 3,
       151, 2);
    GO(lamp_preview_f16, area, 256u, seed, before.data, noise_pred16.data, colours.data, shown.data, 2.f, -1.f, 1.f, 0,
       3, 151, 1);
    GO(lamp_posterior_sample_f32, dim3{1, 1, 1}, 256u, seed, mean.data, mean.data, nullptr, out.data, 7ull, 1, 0.18215f,
       kCount);
    GO(lamp_posterior_sample_f16, dim3{1, 1, 1}, 256u, seed, mean16.data, mean16.data, out.data, out.data, 7ull, 1,
       0.18215f, kCount - 1);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
