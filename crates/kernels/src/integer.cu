// The product with quantised weights: integer.rs, the same bits.
//
// A block takes one panel, sixteen outputs, and all rows, up to eight. The sixteen threads of a half warp take
// a block of 32 inputs, an output each, so that a group of codes is read as 64 bytes in a row; the
// block's half warps take sixteen blocks of inputs at a time. Their dot products are integers, whose
// order is free; the float sum over them is a chain in the order of inputs, as on the CPU, run by
// one thread for each row and output while the others go on to the next sixteen.
//
// Nine to sixteen rows go through tensor cores, eight blocks of inputs at a time, a warp each; the chains
// are the same, and so are the bits. More rows: integer_many.cu.

#pragma once
#include "card/mma.cuh"
#include "quantise.cu"
#include "weight.cu"

constexpr int HALF_WARPS = 16;

// The four bytes of a group for this lane's output.
DEVICE unsigned group_at(const uint8_t *codes, int group, int lane) {
  return *(const unsigned *)(codes + group * GROUP + 4 * lane);
}

// What a lane reads of its output's block of 32 inputs: as bits, so that the reading of the next one can be under way
// while this one is used.
template <int TYPE> struct Fetched {
  unsigned words[layout_of(TYPE).bits];
  unsigned short d, m;
  uint8_t s[2];

  DEVICE_METHOD void fetch(const uint8_t *panel, int at, int lane) {
    constexpr Layout layout = layout_of(TYPE);
    const uint8_t *unit = panel + (size_t)(at / layout.blocks) * layout.bytes();
    const uint8_t *bytes = unit + layout.block(at % layout.blocks);
#pragma unroll
    for (int i = 0; i < layout.bits; i++) words[i] = group_at(bytes + layout.scales, i, lane);
    d = *(const unsigned short *)(unit + 2 * lane);
    if (layout.scaling == AFFINE || layout.scaling == SUPER) m = *(const unsigned short *)(unit + 2 * (LANES + lane));
    if (layout.scaling == SUPER || layout.scaling == HALVES) {
      s[0] = bytes[lane];
      s[1] = bytes[LANES + lane];
    }
  }

  // The codes, four a word; centred by 128 where they are bytes, so that they are signed.
  DEVICE_METHOD void codes(unsigned (&codes)[8]) const {
    constexpr Layout layout = layout_of(TYPE);
    if constexpr (layout.bits == 8) {
#pragma unroll
      for (int g = 0; g < 8; g++) codes[g] = words[g] ^ 0x80808080u;
      return;
    } else {
#pragma unroll
      for (int g = 0; g < 4; g++) {
        codes[g] = words[g] & 0x0f0f0f0fu;
        codes[g + 4] = words[g] >> 4 & 0x0f0f0f0fu;
      }
      if constexpr (layout.bits == 5) {
#pragma unroll
        for (int g = 0; g < 8; g++) codes[g] |= (g < 4 ? words[4] << (4 - g) : words[4] >> (g - 4)) & 0x10101010u;
      }
      if constexpr (layout.bits == 6) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const unsigned plane = words[4 + half];
          codes[4 * half + 0] |= plane << 4 & 0x30303030u;
          codes[4 * half + 1] |= plane << 2 & 0x30303030u;
          codes[4 * half + 2] |= plane & 0x30303030u;
          codes[4 * half + 3] |= plane >> 2 & 0x30303030u;
        }
      }
    }
  }

  // What scales the codes, the first sixteen or all of them.
  DEVICE_METHOD float scale(int part) const {
    constexpr Layout layout = layout_of(TYPE);
    const float scale = __half2float(__ushort_as_half(d));
    if (layout.scaling == SUPER) return scale * (float)s[0];
    if (layout.scaling == HALVES) return scale * (float)(int8_t)s[part];
    return scale;
  }

  // What is added for each unit of the activations.
  DEVICE_METHOD float floor() const {
    constexpr Layout layout = layout_of(TYPE);
    const float floor = __half2float(__ushort_as_half(m));
    return layout.scaling == SUPER ? floor * (float)s[1] : floor;
  }
};

// Dot products of one step of sixteen blocks, and what scales them.
template <int ROWS, int PARTS> struct Step {
  int dots[ROWS][PARTS][HALF_WARPS][LANES];
  float scales[PARTS][HALF_WARPS][LANES];
  float floors[HALF_WARPS][LANES];
};

// x: [m, k / 32].
template <int TYPE, int ROWS> DEVICE void integer(const Products &products, const Block *x, int m, int k) {
  begin();
  constexpr Layout layout = layout_of(TYPE);
  constexpr int PARTS = layout.scaling == HALVES ? 2 : 1;
  __shared__ Step<ROWS, PARTS> steps[2];
  const int lane = threadIdx.x % LANES, place = threadIdx.x / LANES;
  const int depth = k / BLOCK;
  const Product<uint8_t> product(products, blockIdx.x, LANES);
  const uint8_t *panel = product.weight + (size_t)product.stretch * (depth / layout.blocks) * layout.bytes();
  float sum = 0.0f;
  Fetched<TYPE> next;
  if (place < depth) next.fetch(panel, place, lane);
  for (int start = 0, turn = 0; start < depth; start += HALF_WARPS, turn ^= 1) {
    Step<ROWS, PARTS> &step = steps[turn];
    const int at = start + place;
    if (at < depth) {
      const Fetched<TYPE> fetched = next;
      if (at + HALF_WARPS < depth) next.fetch(panel, at + HALF_WARPS, lane);
      unsigned codes[8];
      fetched.codes(codes);
#pragma unroll
      for (int part = 0; part < PARTS; part++) step.scales[part][place][lane] = fetched.scale(part);
      if (layout.scaling == AFFINE || layout.scaling == SUPER) step.floors[place][lane] = fetched.floor();
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (r >= m) break;
        const Block *block = x + (size_t)r * depth + at;
        const int4 low = *(const int4 *)block->codes, high = *(const int4 *)(block->codes + 16);
        const int inputs[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        int dots[2] = {0, 0};
#pragma unroll
        for (int g = 0; g < 8; g++) dots[g / 4] = __dp4a((int)codes[g], inputs[g], dots[g / 4]);
        if (PARTS == 2) {
          step.dots[r][0][place][lane] = dots[0] - 32 * block->sums[0];
          step.dots[r][PARTS - 1][place][lane] = dots[1] - 32 * block->sums[1];
        } else {
          // Signed bytes are centred already.
          const int offset = layout.bits == 8 ? 0 : layout.offset;
          step.dots[r][0][place][lane] = dots[0] + dots[1] - offset * (block->sums[0] + block->sums[1]);
        }
      }
    }
    __syncthreads();
    if (place < m) {
      const Block *row = x + (size_t)place * depth + start;
      const int blocks = depth - start < HALF_WARPS ? depth - start : HALF_WARPS;
      for (int b = 0; b < blocks; b++) {
        const float scale = row[b].scale;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
          sum = fmaf(step.scales[part][b][lane] * scale, (float)step.dots[place][part][b][lane], sum);
        if (layout.scaling == AFFINE || layout.scaling == SUPER) sum = fmaf(step.floors[b][lane], row[b].total, sum);
      }
    }
  }
  const int output = product.stretch * LANES + lane;
  if (place < m && output < product.n) product.out[(size_t)place * product.n + output] = sum;
}

// The codes of an output's block of 32 inputs that a lane hands to a tensor core: groups t and t + 4.
template <int BITS> DEVICE void codes_of_lane(const uint8_t *at, int output, int t, unsigned (&codes)[2]) {
  const unsigned pair = group_at(at, t, output);
  if (BITS == 8) {
    codes[0] = pair ^ 0x80808080u;
    codes[1] = group_at(at, t + 4, output) ^ 0x80808080u;
    return;
  }
  codes[0] = pair & 0x0f0f0f0fu;
  codes[1] = pair >> 4 & 0x0f0f0f0fu;
  if (BITS == 5) {
    const unsigned plane = group_at(at, 4, output);
    codes[0] |= plane << (4 - t) & 0x10101010u;
    codes[1] |= plane >> t & 0x10101010u;
  }
  if (BITS == 6)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const unsigned plane = group_at(at, 4 + half, output);
      codes[half] |= (t < 2 ? plane << (4 - 2 * t) : plane >> (2 * t - 4)) & 0x30303030u;
    }
}

constexpr int BLOCK_WARPS = 8;

// Up to sixteen rows. x: [m, k / 32].
template <int TYPE> DEVICE void integer_sixteen(const Products &products, const Block *x, int m, int k) {
  begin();
  constexpr Layout layout = layout_of(TYPE);
  constexpr int PARTS = layout.scaling == HALVES ? 2 : 1;
  __shared__ int dots[2][PARTS][BLOCK_WARPS][16][LANES];
  __shared__ float scales[2][PARTS][BLOCK_WARPS][LANES], floors[2][BLOCK_WARPS][LANES];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int depth = k / BLOCK;
  const Product<uint8_t> product(products, blockIdx.x, LANES);
  const uint8_t *panel = product.weight + (size_t)product.stretch * (depth / layout.blocks) * layout.bytes();
  const int output = threadIdx.x % LANES, row = threadIdx.x / LANES;
  float sum = 0.0f;
  for (int start = 0, turn = 0; start < depth; start += BLOCK_WARPS, turn ^= 1) {
    const int at = start + warp;
    if (at < depth) {
      const uint8_t *unit = panel + (size_t)(at / layout.blocks) * layout.bytes();
      const uint8_t *bytes = unit + layout.block(at % layout.blocks);
      if (lane < LANES) {
        const float d = half_at(unit + 2 * lane);
        if (layout.scaling == SUPER || layout.scaling == AFFINE) {
          const float floor = half_at(unit + 2 * (LANES + lane));
          scales[turn][0][warp][lane] = layout.scaling == SUPER ? d * (float)bytes[lane] : d;
          floors[turn][warp][lane] = layout.scaling == SUPER ? floor * (float)bytes[LANES + lane] : floor;
        } else {
#pragma unroll
          for (int part = 0; part < PARTS; part++)
            scales[turn][part][warp][lane] = PARTS == 2 ? d * (float)(int8_t)bytes[part * LANES + lane] : d;
        }
      }
      unsigned codes[2][2];
#pragma unroll
      for (int side = 0; side < 2; side++)
        codes_of_lane<layout.bits>(bytes + layout.scales, 8 * side + g, t, codes[side]);
      unsigned a[4] = {};
      int low[2][2] = {};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (half * 8 + g >= m) continue;
        const Block &block = x[(size_t)(half * 8 + g) * depth + at];
        const int *words = (const int *)block.codes;
        a[half] = words[t];
        a[2 + half] = words[t + 4];
        // Signed bytes are centred already.
        const int offset = layout.bits == 8 ? 0 : layout.offset;
        low[half][0] = -offset * (PARTS == 2 ? block.sums[0] : block.sums[0] + block.sums[1]);
        low[half][1] = -offset * block.sums[1];
      }
#pragma unroll
      for (int side = 0; side < 2; side++) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          int c[4] = {low[0][part], low[0][part], low[1][part], low[1][part]};
          if (PARTS == 2)
            mma_half_bytes(c, {a[2 * part], a[2 * part + 1]}, codes[side][part]);
          else
            mma_bytes(c, a, codes[side]);
#pragma unroll
          for (int i = 0; i < 4; i++) dots[turn][part][warp][i / 2 * 8 + g][8 * side + 2 * t + i % 2] = c[i];
        }
      }
    }
    __syncthreads();
    if (row >= m) continue;
    const Block *inputs = x + (size_t)row * depth + start;
    const int blocks = depth - start < BLOCK_WARPS ? depth - start : BLOCK_WARPS;
    for (int b = 0; b < blocks; b++) {
      const float scale = inputs[b].scale;
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        sum = fmaf(scales[turn][part][b][output] * scale, (float)dots[turn][part][b][row][output], sum);
      if (layout.scaling == AFFINE || layout.scaling == SUPER)
        sum = fmaf(floors[turn][b][output], inputs[b].total, sum);
    }
  }
  const int column = product.stretch * LANES + output;
  if (row < m && column < product.n) product.out[(size_t)row * product.n + column] = sum;
}

#define SIXTEEN(name, TYPE)                                                                                \
  KERNEL(256) name(GIVEN(Products) products, const Block *x, int m, int k) { integer_sixteen<TYPE>(products, x, m, k); }
#define INTEGER(name, TYPE, ROWS)                                                                          \
  KERNEL(256) name(GIVEN(Products) products, const Block *x, int m, int k) { integer<TYPE, ROWS>(products, x, m, k); }
#define INTEGERS(name, TYPE)                                                                               \
  INTEGER(name##_1, TYPE, 1)                                                                               \
  INTEGER(name##_2, TYPE, 2)                                                                               \
  INTEGER(name##_4, TYPE, 4)                                                                               \
  INTEGER(name##_8, TYPE, 8)                                                                               \
  SIXTEEN(name##_16, TYPE)

INTEGERS(integer_q4_0, Q4_0)
INTEGERS(integer_q4_1, Q4_1)
INTEGERS(integer_q5_0, Q5_0)
INTEGERS(integer_q5_1, Q5_1)
INTEGERS(integer_q8_0, Q8_0)
INTEGERS(integer_q4_k, Q4K)
INTEGERS(integer_q5_k, Q5K)
INTEGERS(integer_q6_k, Q6K)
