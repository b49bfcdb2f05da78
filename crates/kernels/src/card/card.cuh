// What every kernel is written in: the device's own words on a card, and the shim's on a CPU.
//
// Numbers are the CPU's wherever the order of additions can be the same: nothing is fused but what
// says fmaf, and the same polynomial stands in for exp.

#pragma once

#ifdef __CUDACC__
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// Threads of a block, and blocks of a processor at least.
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define DEVICE static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
#else
#include "card/shim.h"
#endif

// A kernel may start while the one before it in the stream still runs: what its blocks do before this touches nothing
// but weights, which no kernel writes. This lets the next one start, and waits until the one before is done and what it
// wrote can be seen. Every kernel has it, in every block, so that whoever waits for one has waited for all before.
DEVICE void begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

constexpr unsigned ALL = 0xffffffffu;

// The lanes of the CPU's vector; sums over them take the same tree here.
constexpr int LANES = 16;
// Positions of a page of the cache, and threads of a warp: a key for each.
constexpr int PAGE = 32;

#define MINUS_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

// The CPU's maximum: b where either is not a number.
DEVICE float max_of(float a, float b) { return a > b ? a : b; }

// The greatest of a warp's numbers, in every lane.
DEVICE float warp_max(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = max_of(x, __shfl_xor_sync(ALL, x, lanes));
  return x;
}

// The sum of a warp's numbers, in every lane: a tree over lane distances 16, 8, 4, 2, 1.
DEVICE float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = x + __shfl_xor_sync(ALL, x, lanes);
  return x;
}

// A number as a cache keeps it, and back.
DEVICE float wide(float x) { return x; }
DEVICE float wide(__half x) { return __half2float(x); }
DEVICE float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
DEVICE void narrow(float x, float &to) { to = x; }
DEVICE void narrow(float x, __half &to) { to = __float2half_rn(x); }
DEVICE void narrow(float x, __nv_bfloat16 &to) { to = __float2bfloat16_rn(x); }

// Both numbers of a word.
DEVICE void widen(__half, unsigned word, float &low, float &high) {
#ifdef __CUDACC__
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(low), "=f"(high)
      : "r"(word));
#else
  low = __half2float(__ushort_as_half((unsigned short)word));
  high = __half2float(__ushort_as_half((unsigned short)(word >> 16)));
#endif
}
DEVICE void widen(__nv_bfloat16, unsigned word, float &low, float &high) {
  low = __int_as_float(word << 16);
  high = __int_as_float(word & 0xffff0000u);
}

// The products of one launch: weights that meet the same activations, their outputs [m, n], and their n.
constexpr int PRODUCTS = 4;
struct Products {
  unsigned long long weights[PRODUCTS], outs[PRODUCTS], n[PRODUCTS];
};
// A structure that a kernel is given: read where the launch has it, and not copied first.
#define GIVEN(T) const __grid_constant__ T

// A block's product, and which stretch of its outputs it takes.
template <class T> struct Product {
  const T *weight;
  float *out;
  int n, stretch;

  DEVICE_METHOD Product(const Products &all, int at, int width) {
    int product = 0, stretches = ((int)all.n[0] + width - 1) / width;
    while (at >= stretches && product + 1 < PRODUCTS) {
      at -= stretches;
      product++;
      stretches = ((int)all.n[product] + width - 1) / width;
    }
    weight = (const T *)all.weights[product];
    out = (float *)all.outs[product];
    n = (int)all.n[product];
    stretch = at;
  }
};

// Half precision that stands at any even address.
DEVICE float half_at(const uint8_t *at) {
  const unsigned short bits = *(const unsigned short *)at;
  return __half2float(__ushort_as_half(bits));
}
