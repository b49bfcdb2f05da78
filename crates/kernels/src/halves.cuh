// Tiles of attention on tensor cores, for keys and values of sixteen bits.
//
// A block's queries, in groups of sixteen, see the same tiles one after the other. What meets the keys and values is
// single precision, a query or the weights of a tile, and goes in as two numbers of sixteen bits: the nearest one, and
// what that leaves. Both are scaled by powers of two, so that half precision has room for them. So nothing is rounded
// to less than the sums are: the error is one in 2^22 of each product in half precision and one in 2^18 in bfloat16,
// whose keys and values were rounded to one in 2^9.
//
// A query's numbers follow from its own tiles alone: a product's sixteen columns are in the same order every time, and a
// tile that a query does not see leaves it as it is.

#pragma once
#include "card/copy.cuh"
#include "card/mma.cuh"
#include "tile.cuh"

// Threads of a block, and those that make one query's weights of a tile, four keys each.
constexpr int CROWD = 256;
constexpr int SHARERS = 8;
// What weights are multiplied with before they are rounded, and back.
constexpr float RAISED = 16384.0f, LOWERED = 1.0f / 16384.0f;

DEVICE unsigned short to_bits(__half x) { return __half_as_ushort(x); }
DEVICE unsigned short to_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

// A number as the nearest one of sixteen bits, and what that leaves.
template <class T> DEVICE void split(float x, unsigned short (&halves)[2]) {
  T high, low;
  narrow(x, high);
  narrow(x - wide(high), low);
  halves[0] = to_bits(high);
  halves[1] = to_bits(low);
}

// What a block has in shared memory. Queries and weights lie as tensor cores take them: sixteen columns of a group are
// four words a lane. Rows of keys and values are cut in eights, whose order differs from row to row, so that eight rows
// are read at once (see key_at, value_at).
template <class T, int CHANNELS> struct Crowd {
  static constexpr int WIDTH = 32 * CHANNELS, GROUPS = CHANNELS == 8 ? 1 : 2, QUERIES = 16 * GROUPS;
  // Stretches of eight channels that each of the eight warps blends.
  static constexpr int MINE = WIDTH / 8 / (CROWD / 32);

  uint4 q[2][GROUPS][WIDTH / 16][32];
  uint4 weights[2][GROUPS][PAGE / 16][32];
  uint4 k[2][WIDTH][PAGE / 8];
  uint4 v[2][PAGE][WIDTH / 8];
  float scores[QUERIES][PAGE + 4];
  // What a query's dot products are multiplied with, and what its sums shrink by.
  float scales[QUERIES], shrinks[QUERIES];

  // Eight slots' keys in a channel, and eight channels of a slot's value.
  DEVICE_METHOD uint4 *key_at(int stage, int channel, int eight) { return &k[stage][channel][eight ^ (channel >> 1 & 3)]; }
  DEVICE_METHOD uint4 *value_at(int stage, int slot, int eight) { return &v[stage][slot][eight ^ (slot & 7)]; }

  // Where one of a lane's numbers stands: of a query, at a channel or slot.
  DEVICE_METHOD static unsigned short *number(uint4 (*group)[32], int query, int column) {
    const int lane = query % 8 * 4 + column % 8 / 2, word = query % 16 / 8 + column % 16 / 8 * 2;
    return (unsigned short *)&group[column / 16][lane] + 2 * word + column % 2;
  }

  // Starts the copies of a whole tile: keys [d, PAGE], values [PAGE, d].
  DEVICE_METHOD void copy_tile(int stage, const T *keys, const T *values, int d) {
    for (int i = threadIdx.x; i < 4 * d; i += CROWD) copy(key_at(stage, i / 4, i % 4), keys + 8 * i, true);
    if (d % 8 == 0) {
      for (int i = threadIdx.x; i < 4 * d; i += CROWD)
        copy(value_at(stage, i / (d / 8), i % (d / 8)), values + 8 * i, true);
    } else {
      for (int i = threadIdx.x; i < PAGE * d; i += CROWD)
        ((T *)value_at(stage, i / d, i % d / 8))[i % d % 8] = values[i];
    }
  }

  // Takes in the block's queries; get(query): its channels, in single precision.
  template <class Get> DEVICE_METHOD void listen(int count, int d, float scale, Get get) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int query = warp; query < (count + 15) / 16 * 16; query += CROWD / 32) {
      const float *from = query < count ? get(query) : nullptr;
      float x[CHANNELS];
      int greatest = 0;
#pragma unroll
      for (int c = 0; c < CHANNELS; c++) {
        const int channel = lane + 32 * c;
        x[c] = from && channel < d ? from[channel] : 0.0f;
        greatest = max(greatest, __float_as_int(x[c]) & 0x7fffffff);
      }
      for (int lanes = 16; lanes > 0; lanes /= 2) greatest = max(greatest, __shfl_xor_sync(ALL, greatest, lanes));
      // The greatest channel goes to 2^14; what is no number stays none.
      const int exponent = greatest >> 23 == 255 ? 141 : max(greatest >> 23, 15);
      const float up = __int_as_float((unsigned)(268 - exponent) << 23);
      if (lane == 0) scales[query] = __int_as_float((unsigned)(exponent - 14) << 23) * scale;
#pragma unroll
      for (int c = 0; c < CHANNELS; c++) {
        unsigned short halves[2];
        split<T>(x[c] * up, halves);
        for (int part = 0; part < 2; part++) *number(q[part][query / 16], query, lane + 32 * c) = halves[part];
      }
    }
    // Channels that are none meet zeros.
    const uint4 none{0, 0, 0, 0};
    for (int i = threadIdx.x; i < (WIDTH - d) * 4; i += CROWD)
      for (int stage = 0; stage < 2; stage++) k[stage][d + i / 4][i % 4] = none;
  }
};

// What a thread has seen: the softmax of the one query whose weights it helps to make, and a part of the blended values
// of all.
template <class T, int CHANNELS> struct Heard {
  using In = Crowd<T, CHANNELS>;
  float out[In::GROUPS][In::MINE][4];
  float greatest, total;

  // Lets the block's `count` queries see the tiles from..to. fetch(stage, tile): starts the copies of keys and values;
  // seen(start, from, to): which slots of the tile that begins at a position this thread's query sees, none where from
  // is not below to; bias(): its Bias, without a table where there is none.
  template <class Fetch, class Seen, class GetBias>
  DEVICE_METHOD void walk(In &in, int count, int d, int first, int end, Fetch fetch, Seen seen, GetBias bias) {
    const int warp = threadIdx.x / 32, query = threadIdx.x / SHARERS, share = threadIdx.x % SHARERS;
    greatest = MINUS_INFINITY;
    total = 0.0f;
#pragma unroll
    for (int group = 0; group < In::GROUPS; group++)
#pragma unroll
      for (int mine = 0; mine < In::MINE; mine++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[group][mine][i] = 0.0f;
    if (first < end) fetch(0, first);
    end_copies();
    for (int tile = first, stage = 0; tile < end; tile++, stage ^= 1) {
      await_copies<0>();
      __syncthreads();
      // Nobody reads the other stage any more.
      if (tile + 1 < end) fetch(stage ^ 1, tile + 1);
      end_copies();
      if (warp / 4 * 16 < count && warp / 4 < In::GROUPS) score(in, stage, warp / 4, warp % 4, d);
      __syncthreads();
      if (query / 4 * 4 < count) {
        int from = 0, to = 0;
        if (query < count) seen(tile * PAGE, from, to);
        weigh(in, query, share, tile * PAGE, from, to, bias());
      }
      __syncthreads();
      blend(in, stage, count, d);
    }
  }

  // Dot products of a group with eight keys.
  DEVICE_METHOD static void score(In &in, int stage, int group, int eight, int d) {
    const int lane = threadIdx.x % 32;
    float sums[2][4] = {};
#pragma unroll 4
    for (int channel = 0; channel < d; channel += 32) {
      unsigned keys[4];
      load_transposed(keys, in.key_at(stage, channel + lane, eight));
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int part = 0; part < 2; part++) {
          const uint4 q = in.q[part][group][channel / 16 + half][lane];
          mma(T(), sums[part], {q.x, q.y, q.z, q.w}, {keys[2 * half], keys[2 * half + 1]});
        }
    }
#pragma unroll
    for (int low = 0; low < 2; low++)
      *(float2 *)&in.scores[16 * group + 8 * low + lane / 4][8 * eight + lane % 4 * 2] =
          float2{sums[0][2 * low] + sums[1][2 * low], sums[0][2 * low + 1] + sums[1][2 * low + 1]};
  }

  // The weights of four keys: the softmax goes on.
  DEVICE_METHOD void weigh(In &in, int query, int share, int start, int from, int to, Bias bias) {
    const float4 four = *(const float4 *)&in.scores[query][4 * share];
    float weights[4] = {four.x, four.y, four.z, four.w};
    float here = MINUS_INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int slot = 4 * share + i;
      const bool sees = from <= slot && slot < to;
      weights[i] = weights[i] * in.scales[query];
      if (bias.table && sees) weights[i] = weights[i] + bias.at(start + slot);
      if (!sees) weights[i] = MINUS_INFINITY;
      here = max_of(weights[i], here);
    }
    for (int lanes = SHARERS / 2; lanes > 0; lanes /= 2) here = max_of(here, __shfl_xor_sync(ALL, here, lanes));
    here = max_of(here, greatest);
    const float shrink = from < to ? exp_of(greatest - here) : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) weights[i] = from < to ? exp_of(weights[i] - here) : 0.0f;
    float sum = weights[0] + weights[1] + (weights[2] + weights[3]);
    for (int lanes = SHARERS / 2; lanes > 0; lanes /= 2) sum = sum + __shfl_xor_sync(ALL, sum, lanes);
    total = total * shrink + sum;
    greatest = here;
    if (share == 0) in.shrinks[query] = shrink;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      unsigned short halves[2];
      split<T>(weights[i] * RAISED, halves);
      for (int part = 0; part < 2; part++)
        *In::number(in.weights[part][query / 16], query, 4 * share + i) = halves[part];
    }
  }

  // Blends the tile's values by their weights, eight channels at a time.
  DEVICE_METHOD void blend(In &in, int stage, int count, int d) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int mine = 0; mine < In::MINE; mine++) {
      const int eight = warp * In::MINE + mine;
      if (8 * eight >= d) break;
      unsigned values[4];
      load_transposed(values, in.value_at(stage, lane, eight));
#pragma unroll
      for (int group = 0; group < In::GROUPS; group++) {
        if (16 * group >= count) break;
        float(&sums)[4] = out[group][mine];
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = sums[i] * in.shrinks[16 * group + i / 2 * 8 + lane / 4];
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int part = 0; part < 2; part++) {
            const uint4 weights = in.weights[part][group][half][lane];
            mma(T(), sums, {weights.x, weights.y, weights.z, weights.w}, {values[2 * half], values[2 * half + 1]});
          }
      }
    }
  }

  // Writes what the queries have seen: results, or parts for `merge` where there are several. place(query): where they
  // go, nothing where a query has none.
  template <class Place> DEVICE_METHOD void finish(In &in, int count, int d, bool in_parts, Place place) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = threadIdx.x / SHARERS;
    // Who blends last still reads what sums shrink by.
    __syncthreads();
    if (own < count && threadIdx.x % SHARERS == 0) {
      float *const to = place(own);
      if (in_parts && to) {
        to[0] = greatest;
        to[1] = total;
      }
      in.shrinks[own] = total;
    }
    __syncthreads();
#pragma unroll
    for (int group = 0; group < In::GROUPS; group++)
#pragma unroll
      for (int low = 0; low < 2; low++) {
        const int query = 16 * group + 8 * low + lane / 4;
        float *const to = query < count ? place(query) : nullptr;
        if (!to) continue;
#pragma unroll
        for (int mine = 0; mine < In::MINE; mine++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int channel = 8 * (warp * In::MINE + mine) + 2 * (lane % 4) + i;
            if (channel >= d) continue;
            // Zeros lose their sign: a tile that is not seen may take it, or not.
            const float x = out[group][mine][2 * low + i] * LOWERED + 0.0f;
            if (in_parts)
              to[2 + channel] = x;
            else
              to[channel] = x / in.shrinks[query];
          }
      }
  }
};
