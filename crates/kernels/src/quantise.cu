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

// Sixteen rows and 32 inputs as a warp hands them to a tensor core, with g = lane / 4 and t = lane % 4: words t of rows g
// and g + 8, words t + 4 of both; and scale and total of rows g and g + 8.
struct Tile {
  uint4 codes[32];
  float4 scales[8];
};

// What a warp makes of 32 activations, each lane's code among it.
struct Quantised {
  int code, sums[2];
  float scale, total;

  DEVICE_METHOD explicit Quantised(float v) {
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
    code = empty ? 0 : (int)rintf(v * inverse);
    int sum = code;
    for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL, sum, lanes);
    const int other = __shfl_xor_sync(ALL, sum, 16), lane = threadIdx.x % 32;
    sums[0] = lane < 16 ? sum : other;
    sums[1] = lane < 16 ? other : sum;
    scale = finite ? (empty ? 0.0f : greatest / 127.0f) : NOT_A_NUMBER;
    total = finite ? scale * (float)(sum + other) : NOT_A_NUMBER;
  }

  // Writes it down, each lane its part.
  DEVICE_METHOD void store(Block &to) const {
    const int lane = threadIdx.x % 32;
    to.codes[lane] = (int8_t)code;
    if (lane == 0) {
      to.scale = scale;
      to.sums[0] = sums[0];
      to.sums[1] = sums[1];
      to.total = total;
    }
  }
  // As row `row` of a tile.
  DEVICE_METHOD void store(Tile &to, int row) const {
    const int lane = threadIdx.x % 32, g = row % 8, lower = row / 8, word = lane / 4;
    ((int8_t *)&to.codes[4 * g + word % 4])[4 * (word / 4 * 2 + lower) + lane % 4] = (int8_t)code;
    if (lane == 0) ((float2 *)&to.scales[g])[lower] = {scale, total};
  }
};

// A warp a block of 32 activations; blocks: [m, k / 32].
KERNEL(256) quantise(const float *x, Block *blocks, int count) {
  begin();
  const size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (at >= (size_t)count) return;
  Quantised(x[at * BLOCK + lane]).store(blocks[at]);
}

// The same, as tiles: [m / 16, k / 32]. Rows behind the last one are zeros.
KERNEL(256) quantise_tiles(const float *x, Tile *tiles, int m, int depth) {
  begin();
  const size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32, row = (int)(at / depth), block = (int)(at % depth);
  if (row >= (m + 15) / 16 * 16) return;
  Quantised(row < m ? x[at * BLOCK + lane] : 0.0f).store(tiles[(size_t)(row / 16) * depth + block], row % 16);
}
