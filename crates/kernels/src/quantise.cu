// Activations as bytes, row by row in blocks of 32: quantise.rs.

#pragma once
#include "card/card.cuh"

constexpr int BLOCK = 32;

struct alignas(16) Block {
  int8_t codes[BLOCK];
  float scale;
  int sums[2];
  float total;
};

// A warp a block of 32 activations; blocks: [m, k / 32].
KERNEL(256) quantise(const float *x, Block *blocks, int count) {
  const size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (at >= (size_t)count) return;
  const float v = x[at * BLOCK + lane];
  int greatest_bits = __float_as_int(v) & 0x7fffffff;
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const int other = __shfl_xor_sync(ALL, greatest_bits, lanes);
    greatest_bits = greatest_bits > other ? greatest_bits : other;
  }
  const float greatest = __int_as_float(greatest_bits);
  const float inverse = 127.0f / greatest;
  // The bytes cannot say what is no number, so the scale does.
  const bool finite = greatest_bits < 0x7f800000;
  const bool empty = !finite || __float_as_int(inverse) == 0x7f800000;
  const int code = empty ? 0 : (int)rintf(v * inverse);
  int sum = code;
  for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL, sum, lanes);
  const int other = __shfl_xor_sync(ALL, sum, 16);
  Block &to = blocks[at];
  to.codes[lane] = (int8_t)code;
  if (lane == 0) {
    const float scale = empty ? 0.0f : greatest / 127.0f;
    to.scale = finite ? scale : NOT_A_NUMBER;
    to.sums[0] = sum;
    to.sums[1] = other;
    to.total = finite ? scale * (float)(sum + other) : NOT_A_NUMBER;
  }
}
