// SPDX-License-Identifier: Apache-2.0
/* Runs CUDA C++ kernels on the CPU, for tests. Include it ahead of an unchanged .cu file and build with
   g++ -std=c++20 -fno-strict-aliasing -isystem <cuda>/include.

   A block is a set of fibers on one OS thread; blocks run one after another, in an order drawn from `seed`. Fibers
   switch only at block barriers and warp collectives, in an order drawn from `seed` that lets warps drift apart, so
   that a missing barrier gives a wrong result under some seeds; under -fsanitize=thread each fiber counts as a thread
   of its own, and the missing barrier is reported as a data race. Shared memory starts as 0xff bytes (NaN). A barrier
   or a collective that not every expected thread reaches is an error, not a hang. Blocks never run side by side: what
   another block may do in the meantime is tested by their random order alone.                                        */
#pragma once

#include <atomic>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define EMU_TSAN(x) x
#else
#define EMU_TSAN(x)
#endif
/* The emulator's own bookkeeping is shared by fibers on purpose. */
#define EMU_QUIET __attribute__((no_sanitize_thread))

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
/* One section for all shared variables, so that each block can start from poisoned memory. */
#define __shared__ static __attribute__((section("emu_shared")))
extern "C" char __start_emu_shared[] __attribute__((weak));
extern "C" char __stop_emu_shared[] __attribute__((weak));

namespace emu {

/* A suspended flow of control. ucontext would do everywhere, but each of its switches is a system call. */
#ifdef __x86_64__
using Context = void*;   // its stack pointer; the callee-saved registers lie there
extern "C" void emu_switch(Context* from, Context to);
asm(R"(
  .text
  .weak emu_switch
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15}) - 1;
  *--top = reinterpret_cast<void*>(entry);
  context = top - 6;
}
EMU_QUIET inline void switch_context(Context& from, Context& to) { emu_switch(&from, to); }
#else
using Context = ucontext_t;
inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  makecontext(&context, entry, 0);
}
EMU_QUIET inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

using Error = std::runtime_error;
enum class At { kRun, kBlock, kWarp, kDone };

struct Fiber {
  uint3 tid{};
  unsigned flat = 0;
  At at = At::kDone;
  const char* op = "exit";                    // what it waits at
  unsigned mask = 0, source = 0;              // of the warp collective it waits at
  uint64_t value = 0, result = 0;             // given to and got from what it waits at
  unsigned barriers = 0, warp_syncs = 0;      // passed so far
  Context context{};
  std::unique_ptr<char[]> stack;
  EMU_TSAN(void* tsan = nullptr;)
};

struct Block {
  dim3 grid, dim;
  uint3 idx{};
  std::span<Fiber> fibers;
  std::function<void()> body;
  Context context{};                          // the scheduler's
  std::exception_ptr failure;
  EMU_TSAN(void* tsan_main = nullptr;)
};

constexpr size_t kStack = 64 * 1024;
inline Block* block = nullptr;
inline Fiber* running = nullptr;
EMU_QUIET inline Fiber* self() { return running; }
EMU_QUIET inline Block* here() { return block; }

EMU_QUIET inline void to_scheduler(Fiber* f) {
  EMU_TSAN(__tsan_switch_to_fiber(block->tsan_main, __tsan_switch_to_fiber_no_sync);)
  switch_context(f->context, block->context);
}

EMU_QUIET inline void to_fiber(Fiber* f) {
  running = f;
  EMU_TSAN(__tsan_switch_to_fiber(f->tsan, __tsan_switch_to_fiber_no_sync);)
  switch_context(block->context, f->context);
}

/* A fiber serves one thread after the other, so that contexts are made only once. */
EMU_QUIET inline void fiber_main() {
  for (;;) {
    EMU_TSAN(__tsan_acquire(&block->context);)
    try { block->body(); } catch (...) { block->failure = std::current_exception(); }
    EMU_TSAN(__tsan_release(&block->failure);)
    running->at = At::kDone;
    running->op = "exit";
    to_scheduler(running);
  }
}

/* `key`, where given, stands for the barrier: whoever leaves it has seen what was done before it.
   Consecutive barriers need different keys: one fiber reaches the next before another left this. */
EMU_QUIET inline uint64_t wait_at(At at, const char* op, uint64_t value, void* key) {
  Fiber* f = running;
  f->at = at;
  f->op = op;
  f->value = value;
  EMU_TSAN(if (key) __tsan_release(key);)
  to_scheduler(f);
  EMU_TSAN(if (key) __tsan_acquire(key);)
  (void)key;
  return f->result;
}

/* A block barrier; returns the bitwise or of every thread's value. */
EMU_QUIET inline uint64_t barrier(const char* op, uint64_t value = 0) {
  char* keys = reinterpret_cast<char*>(&block->grid);
  return wait_at(At::kBlock, op, value, keys + (running->barriers++ & 1u) * 8);
}

/* A shuffle orders no memory accesses; __syncwarp does. */
EMU_QUIET inline uint64_t collect(unsigned mask, uint64_t value, unsigned source, const char* op,
                                  bool orders_memory = false) {
  Fiber* f = running;
  const unsigned lane = f->flat & 31u;
  if (!(mask >> lane & 1u)) throw Error(std::string(op) + ": the caller is not in its mask");
  if (!(mask >> source & 1u)) throw Error(std::string(op) + ": the source lane is not in the mask");
  f->mask = mask;
  f->source = source;
  char* keys = reinterpret_cast<char*>(&block->fibers[f->flat & ~31u]);
  return wait_at(At::kWarp, op, value, orders_memory ? keys + (f->warp_syncs++ & 1u) * 8 : nullptr);
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* op) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = collect(mask, bits, source, op);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/* Frees the block if every thread that has not exited waits at the same barrier. */
EMU_QUIET inline bool release_barrier(std::span<Fiber> fibers) {
  const char* op = nullptr;
  uint64_t value = 0;
  for (Fiber& f : fibers) {
    if (f.at == At::kDone) continue;
    if (f.at != At::kBlock || (op && f.op != op)) return false;
    op = f.op;
    value |= f.value;
  }
  for (Fiber& f : fibers)
    if (f.at == At::kBlock) {
      f.result = value;
      f.at = At::kRun;
    }
  return op != nullptr;
}

/* Frees every set of lanes whose collective is complete. */
EMU_QUIET inline bool release_warps(std::span<Fiber> fibers) {
  bool moved = false;
  for (size_t i = 0; i < fibers.size(); ++i) {
    if (fibers[i].at != At::kWarp) continue;
    const size_t base = i & ~size_t{31};
    const unsigned mask = fibers[i].mask;
    bool ready = true;
    for (size_t l = 0; l < 32; ++l)
      if (mask >> l & 1u)
        ready = ready && base + l < fibers.size() && fibers[base + l].at == At::kWarp &&
                fibers[base + l].mask == mask && fibers[base + l].op == fibers[i].op;
    if (!ready) continue;
    for (size_t l = 0; l < 32; ++l)
      if (mask >> l & 1u) {
        Fiber& f = fibers[base + l];
        f.result = fibers[base + f.source].value;
        f.at = At::kRun;
      }
    moved = true;
  }
  return moved;
}

inline std::string where(const Fiber& f) {
  return "block (" + std::to_string(block->idx.x) + "," + std::to_string(block->idx.y) + "," +
         std::to_string(block->idx.z) + ") thread " + std::to_string(f.flat) + " at " + f.op;
}

[[noreturn]] inline void divergent() {
  const Fiber *a = nullptr, *b = nullptr;
  for (const Fiber& f : block->fibers) {
    if (!a && f.at != At::kDone) a = &f;
    else if (a && !b && (f.op != a->op || f.mask != a->mask)) b = &f;
  }
  for (const Fiber& f : block->fibers)
    if (!b && f.op != a->op) b = &f;
  throw Error("divergent barrier: " + where(*a) + (b ? ", " + where(*b) : ""));
}

EMU_QUIET inline void run_block(std::vector<Fiber*>& order, std::mt19937& rng) {
  for (Fiber* f : order) {
    f->at = At::kRun;
    f->barriers = f->warp_syncs = 0;
  }
  EMU_TSAN(__tsan_release(&block->context);)
  for (;;) {
    std::shuffle(order.begin(), order.end(), rng);
    const uint32_t held = rng() & rng();   // a quarter of the warps, so that they drift apart
    size_t done = 0, runnable = 0;
    for (Fiber* f : order) {
      if (f->at == At::kRun && !(held >> (f->flat / 32) & 1u)) to_fiber(f);
      done += f->at == At::kDone;
      runnable += f->at == At::kRun;
    }
    if (block->failure) std::rethrow_exception(block->failure);
    if (done == order.size()) break;
    const bool warps = release_warps(block->fibers);
    if (!release_barrier(block->fibers) && !warps && !runnable) divergent();
  }
  EMU_TSAN(__tsan_acquire(&block->failure);)
}

/* Not memset: the sanitizers put guards between the variables, which it may not touch. */
__attribute__((no_sanitize_address, no_sanitize_thread)) inline void poison_shared_memory() {
  if (!__start_emu_shared) return;
  for (volatile char* p = __start_emu_shared; p < __stop_emu_shared; ++p) *p = static_cast<char>(0xff);
}

/* Idle fibers, at least n. They never end; an aborted block's are not used again. */
inline std::span<Fiber> idle_fibers(unsigned n, bool anew) {
  static std::vector<Fiber>* fibers = nullptr;
  if (!fibers || anew) fibers = new std::vector<Fiber>;
  while (fibers->size() < n) {
    Fiber& f = fibers->emplace_back();
    f.flat = static_cast<unsigned>(fibers->size() - 1);
    f.stack.reset(new char[kStack]);
    make_context(f.context, f.stack.get(), kStack, fiber_main);
    EMU_TSAN(f.tsan = __tsan_create_fiber(0);)
  }
  return {fibers->data(), n};
}

inline void launch(dim3 grid, dim3 dim, unsigned seed, std::function<void()> body) {
  static bool aborted = false;
  Block b;
  b.grid = grid;
  b.dim = dim;
  b.body = std::move(body);
  const unsigned n = dim.x * dim.y * dim.z;
  if (n == 0 || n > 1024) throw Error("a block of " + std::to_string(n) + " threads");
  b.fibers = idle_fibers(n, aborted);
  aborted = true;
  std::vector<Fiber*> threads;
  for (Fiber& f : b.fibers) {
    f.tid = {f.flat % dim.x, f.flat / dim.x % dim.y, f.flat / (dim.x * dim.y)};
    threads.push_back(&f);
  }
  EMU_TSAN(b.tsan_main = __tsan_get_current_fiber();)
  block = &b;
  std::mt19937 rng(seed);
  std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), rng);
  for (unsigned i : order) {
    b.idx = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    poison_shared_memory();
    run_block(threads, rng);
  }
  aborted = false;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}

/* cuLaunchKernel's convention: args[i] points at the value of parameter i. */
template <class... A>
int run(void (*kernel)(A...), const unsigned* grid, const unsigned* dim, void** args, unsigned seed, char* error,
        size_t error_size) {
  try {
    launch({grid[0], grid[1], grid[2]}, {dim[0], dim[1], dim[2]}, seed,
           [&] { call(kernel, args, std::index_sequence_for<A...>()); });
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
}

/* Fences of the whole system so far: what orders a kernel's writes for the host. */
inline std::atomic<unsigned> system_fences{0};

}  // namespace emu

#define EMU_EXPORT(kernel)                                                                                             \
  extern "C" int emu_##kernel(const unsigned* grid, const unsigned* dim, void** args, unsigned seed, char* error,      \
                              unsigned long error_size) {                                                              \
    return ::emu::run(&kernel, grid, dim, args, seed, error, error_size);                                              \
  }

#define threadIdx (::emu::self()->tid)
#define blockIdx (::emu::here()->idx)
#define blockDim (::emu::here()->dim)
#define gridDim (::emu::here()->grid)
#define EMU_LANE (::emu::self()->flat & 31u)

inline void __syncthreads() { ::emu::barrier("__syncthreads"); }
inline int __syncthreads_or(int x) { return ::emu::barrier("__syncthreads_or", x != 0) != 0; }
inline void __syncwarp(unsigned mask = ~0u) { ::emu::collect(mask, 0, EMU_LANE, "__syncwarp", true); }
inline void __threadfence() {}
inline void __threadfence_system() { ::emu::system_fences.fetch_add(1); }
template <class T>
T __shfl_sync(unsigned m, T v, int source) {
  return ::emu::shuffle(m, v, source & 31, "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x) {
  return ::emu::shuffle(m, v, EMU_LANE ^ x, "__shfl_xor_sync");
}
inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned atomicMin(unsigned* p, unsigned v) {
  unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline void sincospif(float x, float* s, float* c) {
  *s = static_cast<float>(std::sin(M_PI * double{x}));
  *c = static_cast<float>(std::cos(M_PI * double{x}));
}
