// The product of many rows with quantised weights: integer.rs, the same bits.
//
// A warp takes sixteen rows and a panel, and walks all inputs: dot products come from tensor cores, and each lane runs the
// chains of its eight sums as the CPU does. A block has up to eight tiles of sixteen rows and four panels. It unpacks a
// panel once for all of its rows, 256 inputs at a time, as tensor cores take them: codes as signed bytes less their
// offset, which gives the CPU's integers, and scales multiplied out. What is unpacked next is in shared memory by then,
// and what comes after that is on its way.
//
// By hand, a warp and 32 inputs: the 256 dot products are two multiplications; what scales and adds them up, four
// operations a lane and sum, takes a processor eight cycles at 128 lanes. Operands are 512 bytes of weights, 512 of
// activations, and their scales: eleven cycles at 128 bytes of shared memory and first-level cache. For 128 rows unpacking
// adds some four instructions to 45. So 128 rows take about 96 cycles for a panel's 32 inputs, whose four bits come from
// memory in fourteen (20 bytes a cycle: 4.8 TB/s over 132 processors); activations for two panels are 5 KiB, for which
// the second-level cache has 190 cycles. What many rows cost is a rounded sum every 32 inputs, 64 of those cycles, which
// are the CPU's bits; not weights, and not their unpacking.

#pragma once
#include "card/copy.cuh"
#include "integer.cu"
#include "quantise.cu"

// Blocks of 32 inputs that are unpacked at a time: the largest type's unit. And how many such steps are in the ring that
// copies fill.
constexpr int STEP_BLOCKS = 8, RING = 3;

// A panel's place in shared memory.
template <int TYPE> struct Bench {
  static constexpr int BYTES = STEP_BLOCKS / layout_of(TYPE).blocks * layout_of(TYPE).bytes();
  // As the weight has them.
  uint4 packed[RING][BYTES / 16];
  // Codes as lanes take them: groups t and t + 4 of output g, then of output g + 8.
  uint4 codes[2][STEP_BLOCKS][32];
  // Of each output what scales its codes and what is added for each unit of the activations, or what scales either half.
  float2 scales[2][STEP_BLOCKS][LANES];

  // Makes step `step` of what was copied, of so many blocks, with thread `me` of `threads`.
  DEVICE_METHOD void unpack(int step, int blocks, int me, int threads) {
    constexpr Layout layout = layout_of(TYPE);
    // Signed bytes are centred already.
    constexpr unsigned offset = layout.bits == 8 ? 0 : layout.offset * 0x01010101u;
    const uint8_t *all = (const uint8_t *)packed[step % RING];
    for (int i = me; i < blocks * 32; i += threads) {
      const int b = i / 32, g = i % 32 / 4, t = i % 4;
      const uint8_t *unit = all + b / layout.blocks * layout.bytes();
      const uint8_t *bytes = unit + layout.block(b % layout.blocks) + layout.scales;
      unsigned made[2][2];
#pragma unroll
      for (int side = 0; side < 2; side++) {
        codes_of_lane<layout.bits>(bytes, 8 * side + g, t, made[side]);
#pragma unroll
        for (unsigned &four : made[side])
          if (offset) four = ((four | 0x80808080u) - offset) ^ 0x80808080u;
      }
      codes[step % 2][b][i % 32] = {made[0][0], made[0][1], made[1][0], made[1][1]};
    }
    for (int i = me; i < blocks * LANES; i += threads) {
      const int b = i / LANES, output = i % LANES;
      const uint8_t *unit = all + b / layout.blocks * layout.bytes();
      const uint8_t *bytes = unit + layout.block(b % layout.blocks);
      const float d = half_at(unit + 2 * output);
      float2 made = {d, 0.0f};
      if (layout.scaling == AFFINE) made.y = half_at(unit + 2 * (LANES + output));
      if (layout.scaling == SUPER)
        made = {d * (float)bytes[output], half_at(unit + 2 * (LANES + output)) * (float)bytes[LANES + output]};
      if (layout.scaling == HALVES)
        made = {d * (float)(int8_t)bytes[output], d * (float)(int8_t)bytes[LANES + output]};
      scales[step % 2][b][output] = made;
    }
  }
};

// 1.5 · 2^23: as an integer that is added to a dot product, it makes the bits of the float that is so much larger. Dot
// products are below 2^22.
constexpr int LARGE_BITS = 0x4b400000;
constexpr float LARGE = 12582912.0f;

// Adds what 32 inputs give to the sums of rows g and g + 8: of outputs 2t and 2t + 1, then of those eight behind.
template <int TYPE>
DEVICE void add_block(const Bench<TYPE> &bench, int turn, int b, const uint4 &a, const float4 &rows, float (&sums)[2][4]) {
  constexpr Layout layout = layout_of(TYPE);
  constexpr int PARTS = layout.scaling == HALVES ? 2 : 1;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const uint4 codes = bench.codes[turn][b][lane];
#pragma unroll
  for (int side = 0; side < 2; side++) {
    const unsigned both[2] = {side ? codes.z : codes.x, side ? codes.w : codes.y};
    int dots[PARTS][4];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#pragma unroll
      for (int &dot : dots[part]) dot = LARGE_BITS;
      if (PARTS == 2)
        mma_half_bytes(dots[part], {part ? a.z : a.x, part ? a.w : a.y}, both[part]);
      else
        mma_bytes(dots[part], {a.x, a.y, a.z, a.w}, both);
    }
    const float4 scales = *(const float4 *)&bench.scales[turn][b][8 * side + 2 * t];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float first = i % 2 ? scales.z : scales.x, second = i % 2 ? scales.w : scales.y;
      const float scale = i / 2 ? rows.z : rows.x, total = i / 2 ? rows.w : rows.y;
      float &sum = sums[side][i];
      sum = fmaf(first * scale, __int_as_float(dots[0][i]) - LARGE, sum);
      if (PARTS == 2) sum = fmaf(second * scale, __int_as_float(dots[PARTS - 1][i]) - LARGE, sum);
      if (layout.scaling == AFFINE || layout.scaling == SUPER) sum = fmaf(second, total, sum);
    }
  }
}

// x: [m / 16, k / 32]. A block has `tall` tiles of rows and `wide` of all `panels`.
template <int TYPE>
DEVICE void integer_many(const Products &products, const Tile *x, int m, int k, int tall, int wide, int panels) {
  begin();
  constexpr Layout layout = layout_of(TYPE);
  // Tiles that are asked for before they are used.
  constexpr int DEEP = 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int depth = k / BLOCK, steps = (depth + STEP_BLOCKS - 1) / STEP_BLOCKS;
  const int tiles = (m + 15) / 16, tile = blockIdx.x * tall + warp % tall, panel = blockIdx.y * wide + warp / tall;
  Bench<TYPE> &bench = ((Bench<TYPE> *)room)[warp / tall];
  const bool is_there = panel < panels;
  const Product<uint8_t> product(products, is_there ? panel : 0, LANES);
  const uint8_t *weight = product.weight + (size_t)product.stretch * (depth / layout.blocks) * layout.bytes();
  // Tiles beyond the last one are the last one once more, and written by nobody.
  x += (size_t)min(tile, tiles - 1) * depth;
  const int me = warp % tall * 32 + lane, threads = tall * 32;
  const auto blocks_of = [&](int step) { return min(depth - step * STEP_BLOCKS, STEP_BLOCKS); };
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int bytes = blocks_of(step) / layout.blocks * layout.bytes();
      const uint8_t *from = weight + (size_t)step * Bench<TYPE>::BYTES;
      for (int i = me; i < bytes / 16; i += threads) copy(&bench.packed[step % RING][i], from + 16 * i, true);
    }
    end_copies();
  };
  fetch(0);
  fetch(1);
  await_copies<1>();
  __syncthreads();
  bench.unpack(0, blocks_of(0), me, threads);
  fetch(2);
  float sums[2][4] = {};
  for (int step = 0; step < steps; step++) {
    const int blocks = blocks_of(step);
    uint4 a[DEEP];
    float4 rows[DEEP];
    const auto take = [&](int first) {
#pragma unroll
      for (int deep = 0; deep < DEEP; deep++) {
        if (first + deep >= blocks) break;
        const Tile &at = x[step * STEP_BLOCKS + first + deep];
        a[deep] = at.codes[lane];
        rows[deep] = at.scales[g];
      }
    };
    take(0);
    // What the next step unpacks is here, and nobody reads what the last one did any more.
    await_copies<RING - 2>();
    __syncthreads();
    if (step + 1 < steps) bench.unpack(step + 1, blocks_of(step + 1), me, threads);
    fetch(step + RING);
#pragma unroll
    for (int first = 0; first < STEP_BLOCKS; first += DEEP) {
      if (first > 0) take(first);
#pragma unroll
      for (int deep = 0; deep < DEEP; deep++) {
        if (first + deep >= blocks) break;
        add_block<TYPE>(bench, step % 2, first + deep, a[deep], rows[deep], sums);
      }
    }
  }
  if (!is_there) return;
#pragma unroll
  for (int side = 0; side < 2; side++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = tile * 16 + i / 2 * 8 + g, column = product.stretch * LANES + 8 * side + 2 * t + i % 2;
      if (row < m && column < product.n) product.out[(size_t)row * product.n + column] = sums[side][i];
    }
}

// Registers leave room for two blocks of sixteen warps, or one where there are two sums of codes.
#define INTEGER_MANY(name, TYPE)                                                                                        \
  KERNEL(512, layout_of(TYPE).scaling == HALVES ? 1 : 2)                                                                \
  name(GIVEN(Products) products, const Tile *x, int m, int k, int tall, int wide, int panels) {                    \
    integer_many<TYPE>(products, x, m, k, tall, wide, panels);                                                          \
  }

INTEGER_MANY(integer_q4_0_128, Q4_0)
INTEGER_MANY(integer_q4_1_128, Q4_1)
INTEGER_MANY(integer_q5_0_128, Q5_0)
INTEGER_MANY(integer_q5_1_128, Q5_1)
INTEGER_MANY(integer_q8_0_128, Q8_0)
INTEGER_MANY(integer_q4_k_128, Q4K)
INTEGER_MANY(integer_q5_k_128, Q5K)
INTEGER_MANY(integer_q6_k_128, Q6K)
