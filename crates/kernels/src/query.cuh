// What both attentions ask of keys and values, and how the parts of a long text are joined.
//
// A text is cut into parts of 256 positions, always the same ones, that blocks take apart. Whichever block comes last joins
// a query's parts, in their order: a launch of its own would take longer than what it does.

#pragma once
#include "exp.cuh"

// Tiles of a part, and warps of a block.
constexpr int PART = 8;
constexpr int WALKERS = 8;

// A number added to a score: table[origin + step · key], the index kept inside the table.
struct Bias {
  const float *table;
  int width, origin, step;

  DEVICE_METHOD float at(int key) const {
    const int index = origin + step * key;
    return table[index < 0 ? 0 : index >= width ? width - 1 : index];
  }
};

// One head of one row: its channels, the positions lowest..end that it sees, of which those from `committed` on are on
// its path, what is added to its scores, its number among all, and the first and the last of its parts.
struct Query {
  const float *q;
  const uint32_t *path;
  Bias bias;
  int committed, lowest, end;
  int index, first, last;

  // A query that sees nothing.
  DEVICE_METHOD static Query none() { return {nullptr, nullptr, {nullptr, 0, 0, 0}, 0, 0, 0, 0, 0, -1}; }
  // Whether a part is one of its.
  DEVICE_METHOD bool has(int part) const { return first <= part && part <= last; }
};
static_assert(sizeof(Query) == 64, "joint.rs says so");

// Where attention goes: results, [queries, d]; of queries with several parts these, [queries, parts, 2 + d]: the greatest
// score, the sum of weights and the blended values; and by query how many blocks have come, 0 before and after.
struct Joint {
  float *out, *partial;
  int *met;
  int parts, d;

  DEVICE_METHOD float *part(const Query &query, int part) const {
    return partial + ((size_t)query.index * parts + part) * (2 + d);
  }
  DEVICE_METHOD float *result(const Query &query) const { return out + (size_t)query.index * d; }
};

// What a query has seen in all of its parts, which stand behind each other: CHANNELS channels from `channel` on, so many
// apart, as far as there are some.
template <int CHANNELS, int APART>
DEVICE void join_parts(const float *parts, int count, int d, int channel, float (&sums)[CHANNELS]) {
  float greatest = MINUS_INFINITY, total = 0.0f;
  for (int at = 0; at < count; at++) greatest = max_of(__ldcg(parts + at * (2 + d)), greatest);
#pragma unroll 4
  for (int at = 0; at < count; at++) {
    const float *const seen = parts + at * (2 + d);
    const float weight = exp_of(__ldcg(seen) - greatest), weights = __ldcg(seen + 1) * weight;
    // Added to nothing, a negative zero would lose its sign.
    total = at == 0 ? weights : total + weights;
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
      if (channel + APART * c >= d) break;
      const float value = __ldcg(seen + 2 + channel + APART * c) * weight;
      sums[c] = at == 0 ? value : sums[c] + value;
    }
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; c++) sums[c] = sums[c] / total;
}

// When a block has written part `part` of its queries: joins the parts of those that have all of theirs. find(query): who
// it is.
template <class Find> DEVICE void join(const Joint &to, int count, int part, Find find) {
  // Where nobody counts, whoever reads the parts joins them.
  if (!to.met) return;
  __shared__ bool is_last[4 * WALKERS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // What this block has written can be seen before it has come.
  __threadfence();
  __syncthreads();
  if ((int)threadIdx.x < count) {
    const Query &query = find(threadIdx.x);
    bool last = false;
    if (query.first < query.last && query.has(part)) {
      last = atomicAdd(to.met + query.index, 1) == query.last - query.first;
      if (last) to.met[query.index] = 0;
    }
    is_last[threadIdx.x] = last;
  }
  __syncthreads();
  __threadfence();
  for (int i = warp; i < count; i += WALKERS) {
    if (!is_last[i]) continue;
    const Query &query = find(i);
    const float *const parts = to.part(query, query.first);
    const int d = to.d, count = query.last - query.first + 1;
    // Four channels a lane, so that their numbers come at the same time.
    for (int channel = lane; channel < d; channel += 128) {
      float sums[4] = {};
      join_parts<4, 32>(parts, count, d, channel, sums);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (channel + 32 * c < d) to.result(query)[channel + 32 * c] = sums[c];
    }
  }
}
