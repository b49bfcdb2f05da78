// Activations in the form in which the products that follow take them: operand.rs.

#pragma once
#include "quantise.cu"
#include "round.cu"

// The order of Form in operand.rs.
enum Form { WHOLE, AS_F16, AS_BF16, AS_BLOCKS, AS_TILES };

// Where rows of k numbers are handed over. scales: what undoes the scaling of a row in half precision; depth: steps of 64
// inputs where numbers are rounded, and blocks of 32 where they are bytes.
struct Handed {
  void *to;
  float *scales;
  int k, depth, form;

  // Hands over numbers first..last of a row, whole steps but at its end, with all threads of a block; get(i): number i. In
  // half precision it takes whole rows only.
  template <class Get> DEVICE_METHOD void row(int row, int first, int last, Get get) const {
    const int end = min(last, k);
    const auto eight_of = [&](int eight, float(&x)[8]) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = 8 * eight + i < k ? get(8 * eight + i) : 0.0f;
    };
    switch (form) {
    case WHOLE:
      for (int i = first + threadIdx.x; i < end; i += blockDim.x) ((float *)to)[(size_t)row * k + i] = get(i);
      return;
    case AS_BF16:
      for (int eight = first / 8 + threadIdx.x; eight < min(last / 8, 8 * depth); eight += blockDim.x) {
        float x[8];
        eight_of(eight, x);
        ((uint4 *)to)[place_of(row, eight, depth)] = round_eight<__nv_bfloat16>(x, 1.0f);
      }
      return;
    case AS_F16: {
      int bits = 0;
      for (int i = threadIdx.x; i < k; i += blockDim.x) bits = max(bits, __float_as_int(get(i)) & 0x7fffffff);
      const Scaling16 scaling(block_max(bits));
      for (int eight = threadIdx.x; eight < 8 * depth; eight += blockDim.x) {
        float x[8];
        eight_of(eight, x);
        ((uint4 *)to)[place_of(row, eight, depth)] = round_eight<__half>(x, scaling.down);
      }
      if (threadIdx.x == 0) scales[row] = scaling.up;
      return;
    }
    default:
      for (int b = first / BLOCK + threadIdx.x / 32; b < end / BLOCK; b += blockDim.x / 32) {
        const Quantised made(get(b * BLOCK + threadIdx.x % 32));
        if (form == AS_BLOCKS)
          made.store(((Block *)to)[(size_t)row * depth + b]);
        else
          made.store(((Tile *)to)[(size_t)(row / 16) * depth + b], row % 16);
      }
    }
  }
};
#define HANDED void *to, float *scales, int depth, int form
