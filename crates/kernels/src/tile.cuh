// One tile of attention, 32 keys and values, against the queries of a warp: tile.rs, the same bits.
//
// A lane is a key where scores are made and a channel where values are blended; both run in the CPU's
// order. A long text is cut into parts of 256 positions, always the same ones, that blocks walk apart;
// `merge` then joins a row's parts in their order.

#pragma once
#include "exp.cuh"

// Tiles that one walk takes.
constexpr int PART = 8;
// Warps of a block, and queries of a warp.
constexpr int WALKERS = 8;
constexpr int QUERIES = 4;

// Queries in a warp's own part of shared memory, channel by channel, and their weights over a tile, slot by slot: all
// queries' numbers are one load.
template <int CHANNELS, int COUNT = QUERIES> struct alignas(16) Desk {
  float q[CHANNELS * 32][COUNT];
  float weights[PAGE][COUNT];

  // Numbers of all queries.
  DEVICE_METHOD static void load(const float (&from)[COUNT], float (&to)[COUNT]) {
    if constexpr (COUNT == 4) {
      const float4 four = *(const float4 *)from;
      to[0] = four.x;
      to[1] = four.y;
      to[2] = four.z;
      to[3] = four.w;
    } else {
#pragma unroll
      for (int h = 0; h < COUNT; h++) to[h] = from[h];
    }
  }
};

// What the queries of a warp have seen; a lane has channels lane, lane + 32, ….
template <int CHANNELS, int COUNT = QUERIES> struct Seen {
  float out[COUNT][CHANNELS];
  float greatest[COUNT], total[COUNT];

  DEVICE_METHOD void clear() {
#pragma unroll
    for (int h = 0; h < COUNT; h++) {
      greatest[h] = MINUS_INFINITY;
      total[h] = 0.0f;
#pragma unroll
      for (int c = 0; c < CHANNELS; c++) out[h][c] = 0.0f;
    }
  }
};

// A number added to a score: table[origin + step · key], the index kept inside the table.
struct Bias {
  const float *table;
  int width, origin, step;

  DEVICE_METHOD float at(int key) const {
    const int index = origin + step * key;
    return table[index < 0 ? 0 : index >= width ? width - 1 : index];
  }
};

// Lets `count` queries see slots from..to of the tile that begins at position `start`.
//
// key(i): channel i of this lane's key; value(slot, i): channel i of a slot's value, for slots from..to;
// bias(h): query h's Bias, without a table where there is none. Queries from `count` on are carried along and mean nothing.
template <int CHANNELS, int QUERIES, class Key, class Value, class GetBias>
DEVICE void see(Desk<CHANNELS, QUERIES> &desk, Seen<CHANNELS, QUERIES> &seen, int count, int d, float scale, int start,
                int from, int to, Key key, Value value, GetBias bias) {
  const int lane = threadIdx.x % 32;
  float even[QUERIES] = {}, odd[QUERIES] = {};
  int i = 0;
#pragma unroll(QUERIES == 1 ? 8 : 4)
  for (; i + 1 < d; i += 2) {
    const float left = key(i), right = key(i + 1);
    float q[2][QUERIES];
    desk.load(desk.q[i], q[0]);
    desk.load(desk.q[i + 1], q[1]);
#pragma unroll
    for (int h = 0; h < QUERIES; h++) {
      even[h] = fmaf(q[0][h], left, even[h]);
      odd[h] = fmaf(q[1][h], right, odd[h]);
    }
  }
  if (i < d) {
    const float left = key(i);
#pragma unroll
    for (int h = 0; h < QUERIES; h++) even[h] = fmaf(desk.q[i][h], left, even[h]);
  }
  float shrink[QUERIES] = {};
#pragma unroll
  for (int h = 0; h < QUERIES; h++) {
    if (h >= count) break;
    float score = (even[h] + odd[h]) * scale;
    const Bias added = bias(h);
    const bool sees = from <= lane && lane < to;
    if (added.table && sees) score = score + added.at(start + lane);
    if (!sees) score = MINUS_INFINITY;
    const float greatest = max_of(warp_max(score), seen.greatest[h]);
    shrink[h] = exp_of(seen.greatest[h] - greatest);
    const float weight = exp_of(score - greatest);
    seen.total[h] = seen.total[h] * shrink[h] + warp_sum(weight);
    seen.greatest[h] = greatest;
    desk.weights[lane][h] = weight;
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < QUERIES; h++)
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) seen.out[h][c] = seen.out[h][c] * shrink[h];
#pragma unroll(QUERIES == 1 ? 8 : 4)
  for (int slot = from; slot < to; slot++) {
    float weights[QUERIES];
    desk.load(desk.weights[slot], weights);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
      const int channel = lane + 32 * c;
      const float x = channel < d ? value(slot, channel) : 0.0f;
#pragma unroll
      for (int h = 0; h < QUERIES; h++) seen.out[h][c] = fmaf(weights[h], x, seen.out[h][c]);
    }
  }
  __syncwarp();
}

// Writes what query h has seen: the result where there is one part only, or the part for `merge`, [query, part]:
// greatest, total, and the blended values.
template <int CHANNELS, int QUERIES>
DEVICE void finish(const Seen<CHANNELS, QUERIES> &seen, int h, int d, size_t query, int part, int parts, float *out,
                   float *partial) {
  const int lane = threadIdx.x % 32;
  if (parts > 1) {
    partial += (query * parts + part) * (2 + d);
    if (lane == 0) {
      partial[0] = seen.greatest[h];
      partial[1] = seen.total[h];
    }
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; c++) {
    const int channel = lane + 32 * c;
    if (channel >= d) break;
    if (parts > 1)
      partial[2 + channel] = seen.out[h][c];
    else
      out[query * d + channel] = seen.out[h][c] / seen.total[h];
  }
}
