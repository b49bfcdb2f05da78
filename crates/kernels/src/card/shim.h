// A card on a CPU: the words of CUDA that the kernels use, in C++.
//
// A block's threads are fibres of one thread, so __shared__ is plain static memory. A fibre runs
// until it waits: at a barrier for the block, at a warp's exchange for the lanes that the mask
// names. Everything is static, since several libraries of these kernels may be loaded at once.
// Where none can go on, a kernel has a barrier that not all reach, and the program ends.

#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__ __restrict
#define __grid_constant__
#define DEVICE static inline
#define DEVICE_METHOD inline
#define KERNEL(...) static void

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

namespace shim {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;
// Shared memory that a launch may give: what every card since compute capability 8.0 has. Behind what it gives stands
// a guard.
constexpr size_t ROOM = 99 << 10, GUARD = 1 << 10;
constexpr unsigned char UNTOUCHED = 0xa5;
alignas(16) static unsigned char room_bytes[ROOM + GUARD];
static uint4 *const room = (uint4 *)room_bytes;

// What a lane hands to the others of its warp.
union Word {
  float f;
  int i;
  unsigned u;
};
struct Gift {
  Word words[8];
};

struct Warp {
  int arrived = 0;
  unsigned long turn = 0;
  Gift gifts[WARP];
};

// A copy into shared memory that was started: from nowhere come zeros.
struct Copy {
  uint4 *to;
  const void *from;
};

struct Fibre {
  ucontext_t context;
  jmp_buf state;
  std::vector<char> stack;
  // Copies that nobody has waited for, and where their groups end.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
  dim3 index{};
  bool started = false, done = false;
};

struct Block {
  // As many as a block may have threads. They are kept: between blocks each waits for the next body.
  std::vector<Fibre> fibres{1024};
  std::vector<Warp> warps;
  size_t current = 0;
  int waiting = 0;
  unsigned long barriers = 0;
  size_t sweeps = 0;
  // Whether anything happened since the last look at all fibres.
  bool progress = false;
  jmp_buf scheduler;
  void (*body)(void *) = nullptr;
  void *what = nullptr;
};

// A block has a multiple of 32 threads, and at most 1024, so that steps of these lengths reach them all.
constexpr size_t strides[] = {1, 13, 1021, 509, 37};

static Block *block = nullptr;
static dim3 block_index{}, block_size{}, grid_size{};

// Lets the other fibres run.
static inline void yield() {
  Fibre &fibre = block->fibres[block->current];
  if (_setjmp(fibre.state) == 0) _longjmp(block->scheduler, 1);
}

static inline void enter() {
  for (;;) {
    block->body(block->what);
    block->fibres[block->current].done = true;
    block->progress = true;
    yield();
  }
}

// Runs one block, every thread to its end.
static inline void run_block(unsigned threads, void (*body)(void *), void *what) {
  static Block kept;
  block = &kept;
  kept.warps.assign((threads + WARP - 1) / WARP, Warp());
  kept.waiting = 0;
  kept.body = body;
  kept.what = what;
  for (unsigned i = 0; i < threads; i++) {
    kept.fibres[i].index = {i, 0, 0};
    kept.fibres[i].done = false;
    kept.fibres[i].copies.clear();
    kept.fibres[i].groups.clear();
  }
  volatile size_t left = threads;
  while (left > 0) {
    kept.progress = false;
    // In another order every time, so that a barrier that is missing shows.
    const size_t stride = strides[kept.sweeps++ % 5];
    for (volatile size_t step = 0; step < threads; step = step + 1) {
      const size_t i = (step * stride + kept.sweeps) % threads;
      Fibre &fibre = kept.fibres[i];
      if (fibre.done) continue;
      kept.current = i;
      if (_setjmp(kept.scheduler) == 0) {
        if (fibre.started) _longjmp(fibre.state, 1);
        fibre.started = kept.progress = true;
        fibre.stack.resize(STACK);
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
        setcontext(&fibre.context);
      }
      if (kept.fibres[kept.current].done) left = left - 1;
    }
    if (left > 0 && !kept.progress) {
      std::fprintf(stderr, "a kernel waits for threads that do not come\n");
      std::abort();
    }
  }
}

static inline Fibre &current() { return block->fibres[block->current]; }

// Makes the copies of all groups of the current fibre but the last `left`.
static inline void copy_groups(size_t left) {
  Fibre &fibre = current();
  if (fibre.groups.size() <= left) return;
  const size_t groups = fibre.groups.size() - left, copies = fibre.groups[groups - 1];
  for (size_t i = 0; i < copies; i++) {
    const Copy copy = fibre.copies[i];
    if (copy.from)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
  fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + copies);
  fibre.groups.erase(fibre.groups.begin(), fibre.groups.begin() + groups);
  for (size_t &end : fibre.groups) end -= copies;
}

static inline unsigned lane() { return block->fibres[block->current].index.x % WARP; }
static inline Warp &warp() { return block->warps[block->current / WARP]; }

// Waits until all lanes of the mask are here.
static inline void meet(unsigned mask) {
  Warp &here = warp();
  const unsigned long turn = here.turn;
  block->progress = true;
  if (++here.arrived == __builtin_popcount(mask)) {
    here.arrived = 0;
    here.turn++;
    return;
  }
  while (here.turn == turn) yield();
}

// Hands a gift to the warp, and gives what `read` makes of all lanes'.
template <class Read> static auto exchange(unsigned mask, const Gift &gift, Read read) {
  warp().gifts[lane()] = gift;
  meet(mask);
  auto result = read(warp().gifts);
  meet(mask);
  return result;
}

template <class T> static T shuffle(unsigned mask, T x, unsigned from) {
  static_assert(sizeof(T) == 4, "a word");
  Gift gift{};
  std::memcpy(&gift.words[0], &x, 4);
  return exchange(mask, gift, [&](const Gift *gifts) {
    T result;
    std::memcpy(&result, &gifts[from % WARP].words[0], 4);
    return result;
  });
}

// Starts kernels by name.
using Start = void (*)(const unsigned *grid, unsigned threads, unsigned shared, void **args);

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A> *>(args[I])...);
}

template <class... A>
static void start(void (*kernel)(A...), const unsigned *grid, unsigned threads, unsigned shared, void **args) {
  if (shared > ROOM) {
    std::fprintf(stderr, "a kernel is given %u bytes of shared memory\n", shared);
    std::abort();
  }
  std::memset(room_bytes + shared, UNTOUCHED, GUARD);
  struct What {
    void (*kernel)(A...);
    void **args;
  } what{kernel, args};
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {threads, 1, 1};
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        block_index = {x, y, z};
        // No number, so that what nobody has written shows.
        std::memset(room_bytes, 0xff, shared);
        run_block(
            threads,
            [](void *it) {
              auto *what = static_cast<What *>(it);
              call(what->kernel, what->args, std::index_sequence_for<A...>{});
            },
            &what);
      }
  for (size_t i = 0; i < GUARD; i++)
    if (room_bytes[shared + i] != UNTOUCHED) {
      std::fprintf(stderr, "a kernel leaves the %u bytes of shared memory that it is given\n", shared);
      std::abort();
    }
}

} // namespace shim

#define threadIdx (shim::block->fibres[shim::block->current].index)
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size

// Defines how the emulator starts a kernel.
#define EXPORT(kernel)                                                                                 \
  static void start_##kernel(const unsigned *grid, unsigned threads, unsigned shared, void **args) {   \
    shim::start(kernel, grid, threads, shared, args);                                                  \
  }

static inline void __syncthreads() {
  shim::Block &here = *shim::block;
  const unsigned long barriers = here.barriers;
  here.progress = true;
  if (++here.waiting == (int)shim::block_size.x) {
    here.waiting = 0;
    here.barriers++;
    return;
  }
  while (here.barriers == barriers) shim::yield();
}

// How many threads of the block say so.
static inline int __syncthreads_count(int says_so) {
  static int counts[2];
  static unsigned turn;
  // The next call counts in the other place, which nobody reads any more.
  const unsigned at = turn % 2;
  counts[at] += says_so != 0;
  __syncthreads();
  turn += turn % 2 == at;
  const int count = counts[at];
  __syncthreads();
  counts[at] = 0;
  return count;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::meet(mask); }
template <class T> static T __shfl_sync(unsigned mask, T x, int lane) { return shim::shuffle(mask, x, lane); }
template <class T> static T __shfl_xor_sync(unsigned mask, T x, int lanes) {
  return shim::shuffle(mask, x, shim::lane() ^ lanes);
}
static inline unsigned __ballot_sync(unsigned mask, bool bit) {
  shim::Gift gift{};
  gift.words[0].u = bit;
  return shim::exchange(mask, gift, [](const shim::Gift *gifts) {
    unsigned bits = 0;
    for (int lane = 0; lane < shim::WARP; lane++) bits |= gifts[lane].words[0].u << lane;
    return bits;
  });
}

// Fibres take turns, and none is interrupted.
static inline int atomicAdd(int *to, int x) {
  *to += x;
  return *to - x;
}
static inline unsigned atomicOr(unsigned *to, unsigned bits) {
  *to |= bits;
  return *to;
}
static inline void __threadfence() {}
template <class T> static T __ldcg(const T *from) { return *from; }

static inline float __int_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
static inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Adds four products of signed bytes.
static inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
  return sum;
}

// Half precision.
struct __half {
  uint16_t bits;
};
static inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
static inline unsigned short __half_as_ushort(__half x) { return x.bits; }
static inline float __half2float(__half x) {
  const unsigned sign = (unsigned)(x.bits >> 15) << 31, exponent = x.bits >> 10 & 31, part = x.bits & 1023;
  if (exponent == 31) return __int_as_float(sign | 0x7f800000u | part << 13);
  if (exponent > 0) return __int_as_float(sign | (exponent + 112) << 23 | part << 13);
  const float tiny = (float)part * 5.9604644775390625e-8f;
  return sign ? -tiny : tiny;
}
static inline __half __float2half_rn(float x) {
  const unsigned bits = __float_as_int(x), sign = bits >> 16 & 0x8000u;
  const unsigned magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {(uint16_t)(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {(uint16_t)(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Below the normal numbers: a whole number of the smallest one, rounded by the addition.
    const float shifted = __int_as_float(magnitude) + 0.5f;
    return {(uint16_t)(sign | ((unsigned)__float_as_int(shifted) - 0x3f000000u))};
  }
  const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {(uint16_t)(sign | (rounded - 0x38000000u) >> 13)};
}

// The upper half of single precision.
struct __nv_bfloat16 {
  uint16_t bits;
};
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
static inline float __bfloat162float(__nv_bfloat16 x) { return __int_as_float((unsigned)x.bits << 16); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned bits = __float_as_int(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {(uint16_t)0x7fffu};
  return {(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
