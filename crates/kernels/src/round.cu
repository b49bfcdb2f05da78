// Activations as products with weights of sixteen bits take them.
//
// Both sides of a product lie in pieces of 64 inputs: a piece has eight rows or outputs, [2][8][32], and pieces
// [rows / 8][depth], where depth is the number of steps of 64 inputs, the last one filled up with zeros. So the
// 512 bytes that a warp hands to a tensor core at once stand in a row in memory, and in shared memory without conflicts.

#pragma once
#include "card/card.cuh"

// Words of sixteen bytes in a piece, and inputs.
constexpr int PIECE = 64, STEP = 64;

// Where eight of a row's inputs stand, in words of sixteen bytes.
DEVICE size_t place_of(int row, int eight, int depth) {
  return ((size_t)(row / 8) * depth + eight / 8) * PIECE + eight % 8 / 4 * 32 + row % 8 * 4 + eight % 4;
}

DEVICE unsigned short rounded(__half, float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE unsigned short rounded(__nv_bfloat16, float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Eight numbers of a row of k, from input 8 · eight on; zeros behind the last.
DEVICE void load_eight(const float *row, int eight, int k, float (&x)[8]) {
  const int first = 8 * eight;
  if (k % 4 == 0 && first + 8 <= k) {
    const float4 left = *(const float4 *)(row + first), right = *(const float4 *)(row + first + 4);
    x[0] = left.x, x[1] = left.y, x[2] = left.z, x[3] = left.w;
    x[4] = right.x, x[5] = right.y, x[6] = right.z, x[7] = right.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = first + i < k ? row[first + i] : 0.0f;
}

template <class T> DEVICE uint4 round_eight(const float (&x)[8], float down) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    words[i] = rounded(T(), x[2 * i] * down) | (unsigned)rounded(T(), x[2 * i + 1] * down) << 16;
  return {words[0], words[1], words[2], words[3]};
}

// A thread eight numbers of x, [m, k]: a block row each row.
KERNEL(256) round_bf16(const float *x, uint4 *to, int k, int depth) {
  begin();
  const int row = blockIdx.y, eight = blockIdx.x * blockDim.x + threadIdx.x;
  if (eight >= 8 * depth) return;
  float found[8];
  load_eight(x + (size_t)row * k, eight, k, found);
  to[place_of(row, eight, depth)] = round_eight<__nv_bfloat16>(found, 1.0f);
}

// What scales a row in half precision, whose greatest magnitude has these bits: a row that is too large by a power of two.
struct Scaling16 {
  float down, up;

  DEVICE_METHOD explicit Scaling16(int greatest) {
    // 2^15 and above, and still a number.
    const int exponent = greatest >> 23;
    const bool large = exponent >= 127 + 15 && exponent < 255;
    down = large ? __int_as_float((unsigned)(127 + 127 + 14 - exponent) << 23) : 1.0f;
    up = large ? __int_as_float((unsigned)(exponent - 14) << 23) : 1.0f;
  }
};

// The greatest of a block's numbers, in every thread.
DEVICE int block_max(int bits) {
  __shared__ int greatest[32];
  for (int lanes = 16; lanes > 0; lanes /= 2) bits = max(bits, __shfl_xor_sync(ALL, bits, lanes));
  if (threadIdx.x % 32 == 0) greatest[threadIdx.x / 32] = bits;
  __syncthreads();
  for (int warp = 0; warp < (int)blockDim.x / 32; warp++) bits = max(bits, greatest[warp]);
  return bits;
}

// One block a row. scales, [m]: what undoes a row's scaling.
constexpr int ROUNDERS = 512;
KERNEL(ROUNDERS) round_f16(const float *x, uint4 *to, float *scales, int k, int depth) {
  begin();
  const float *row = x + (size_t)blockIdx.x * k;
  int bits = 0;
  for (int eight = threadIdx.x; eight < 8 * depth; eight += ROUNDERS) {
    float found[8];
    load_eight(row, eight, k, found);
#pragma unroll
    for (int i = 0; i < 8; i++) bits = max(bits, __float_as_int(found[i]) & 0x7fffffff);
  }
  const Scaling16 scaling(block_max(bits));
  for (int eight = threadIdx.x; eight < 8 * depth; eight += ROUNDERS) {
    float found[8];
    load_eight(row, eight, k, found);
    to[place_of(blockIdx.x, eight, depth)] = round_eight<__half>(found, scaling.down);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = scaling.up;
}
