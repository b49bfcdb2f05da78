// Tiles of attention on tensor cores, for keys and values of sixteen bits.
//
// A block's queries, in groups of sixteen, see a part of a text at once: each of eight warps makes the scores of one
// tile, and when the greatest score of the part is known, its weights; then each blends some channels of all tiles.
//
// What meets the keys and values is single precision, a query or a weight, and goes in as two numbers of sixteen bits:
// the nearest one, and what that leaves. Both are scaled by powers of two, so that half precision has room for them.
// So nothing is rounded to less than the sums are: the error is one in 2^22 of each product in half precision and one in
// 2^18 in bfloat16, whose keys and values were rounded to one in 2^9.
//
// Keys and values go from memory to where they are multiplied, sixteen bytes a lane: which input of a product is which is
// free, as long as both sides agree, and so is which key is which column. With g = lane / 4 and t = lane % 4, a lane takes
// channels 8t to 8t + 7 of each 32 of a key. Column g of the products with number j is key 8 (g / 2) + 2j + g % 2, so that
// a lane has the scores of keys 8t to 8t + 7, and meets these slots of a channel's values.
//
// A query's numbers follow from its own positions alone: what it does not see weighs nothing, and the tiles of a part are
// in the same order every time.

#pragma once
#include "card/mma.cuh"
#include "tile.cuh"

// What weights are multiplied with before they are rounded, and back.
constexpr float RAISED = 16384.0f, LOWERED = 1.0f / 16384.0f;

// Two numbers as the nearest ones of sixteen bits, and what those leave: a word each.
template <class T> DEVICE void split(float x, float y, unsigned &nearest, unsigned &left) {
  const T high[2] = {kept<T>(x), kept<T>(y)};
  nearest = to_bits(high[0]) | to_bits(high[1]) << 16;
  left = to_bits(kept<T>(x - wide(high[0]))) | to_bits(kept<T>(y - wide(high[1]))) << 16;
}

// What a block has in shared memory. Queries and weights lie as tensor cores take them: sixteen inputs of a group are
// four words a lane, of the nearest numbers and of what they leave.
template <class T, int CHANNELS> struct Crowd {
  static constexpr int WIDTH = 32 * CHANNELS, GROUPS = CHANNELS == 8 ? 1 : 2, QUERIES = 16 * GROUPS;

  uint4 q[GROUPS][WIDTH / 16][2][32];
  uint4 weights[PART][GROUPS][PAGE / 16][2][32];
  // By tile: each query's greatest score, and the sum of its weights.
  float greatest[QUERIES][PART], totals[QUERIES][PART];
  // What a query's dot products are multiplied with.
  float scales[QUERIES];
  Query queries[QUERIES];
  Text<T> text;

  // Takes in `groups` groups of queries, of which there are `count`; ask(query): who it is.
  template <int SOME, class Ask> DEVICE_METHOD void listen(int count, int d, float scale, Ask ask) {
    constexpr int STRETCHES = (WIDTH + 127) / 128, EACH = 16 * SOME / WALKERS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float x[EACH][STRETCHES][4];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int query = warp * EACH + i;
      const Query it = query < count ? ask(query) : Query::none();
      if (lane == 0) queries[query] = it;
      const bool by_four = d % 4 == 0 && (size_t)it.q % 16 == 0;
#pragma unroll
      for (int c = 0; c < STRETCHES; c++) {
        const int channel = 4 * lane + 128 * c;
        float4 four{0.0f, 0.0f, 0.0f, 0.0f};
        if (it.q && by_four) {
          if (channel < d) four = *(const float4 *)(it.q + channel);
        } else if (it.q) {
          if (channel < d) four.x = it.q[channel];
          if (channel + 1 < d) four.y = it.q[channel + 1];
          if (channel + 2 < d) four.z = it.q[channel + 2];
          if (channel + 3 < d) four.w = it.q[channel + 3];
        }
        x[i][c][0] = four.x;
        x[i][c][1] = four.y;
        x[i][c][2] = four.z;
        x[i][c][3] = four.w;
      }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int query = warp * EACH + i;
      int most = 0;
#pragma unroll
      for (int c = 0; c < STRETCHES; c++)
#pragma unroll
        for (int j = 0; j < 4; j++) most = max(most, __float_as_int(x[i][c][j]) & 0x7fffffff);
      for (int lanes = 16; lanes > 0; lanes /= 2) most = max(most, __shfl_xor_sync(ALL, most, lanes));
      // The greatest channel goes to 2^14; what is no number stays none.
      const int exponent = most >> 23 == 255 ? 141 : max(most >> 23, 15);
      const float up = __int_as_float((unsigned)(268 - exponent) << 23);
      if (lane == 0) scales[query] = __int_as_float((unsigned)(exponent - 14) << 23) * scale;
#pragma unroll
      for (int c = 0; c < STRETCHES; c++) {
        const int channel = 4 * lane + 128 * c;
        if (channel >= WIDTH) break;
        unsigned words[2][2];
        split<T>(x[i][c][0] * up, x[i][c][1] * up, words[0][0], words[1][0]);
        split<T>(x[i][c][2] * up, x[i][c][3] * up, words[0][1], words[1][1]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          uint4 *const four = &q[query / 16][channel / 32 * 2 + channel / 4 % 2][half][query % 8 * 4 + channel / 8 % 4];
          ((unsigned *)four)[query % 16 / 8] = words[half][0];
          ((unsigned *)four)[query % 16 / 8 + 2] = words[half][1];
        }
      }
    }
  }
};

// Lets `count` queries, in so many groups, see the tiles first..end of the text, which are part `part`; writes what they
// have seen: results, or parts for `merge` where there are several. `bounded`: whether some may see none of the first
// tiles.
template <int SOME, class T, int CHANNELS, class Ask>
DEVICE void hear_some(Crowd<T, CHANNELS> &in, int count, int first, int end, float scale, bool bounded, Ask ask, int part,
                      int parts, float *out, float *partial) {
  const Text<T> &text = in.text;
  // Channels of a key that a lane keeps at a time: 32 each.
  constexpr int KEPT = CHANNELS < 4 ? CHANNELS : 4;
  static_assert(CHANNELS == KEPT || SOME == 1, "keys are read once");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, d = text.d;
  const int tile = first + warp;
  const uint32_t pages = lane < end - first ? text.page(first + lane) : 0;
  const uint32_t page = __shfl_sync(ALL, pages, warp);
  uint4 keys[KEPT][4];
  const auto fetch = [&](int from) {
#pragma unroll
    for (int c = 0; c < KEPT; c++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        keys[c][j] = text.key(page, tile, 8 * (g / 2) + 2 * j + g % 2, 32 * (from + c) + 8 * t);
  };
  if (tile < end) fetch(0);
  in.template listen<SOME>(count, d, scale, ask);
  __syncthreads();
  // Positions below this are nobody's.
  int lowest = 0;
  if (bounded) {
    lowest = lane < count ? in.queries[lane].lowest : end * PAGE;
    for (int lanes = 16; lanes > 0; lanes /= 2) lowest = min(lowest, __shfl_xor_sync(ALL, lowest, lanes));
  }

  // By group, product and place: of query g keys 8t + 2j and the next one, then those of query g + 8.
  float scores[SOME][4][4];
#pragma unroll
  for (int group = 0; group < SOME; group++) {
    float sums[2][4][4] = {};
    if (tile < end) {
#pragma unroll
      for (int from = 0; from < CHANNELS; from += KEPT) {
        if (from > 0) fetch(from);
#pragma unroll
        for (int c = 0; c < KEPT; c++) {
          if (32 * (from + c) >= d) break;
#pragma unroll
          for (int side = 0; side < 2; side++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
              const uint4 q = in.q[group][2 * (from + c) + side][half][lane];
#pragma unroll
              for (int j = 0; j < 4; j++) {
                const uint4 key = keys[c][j];
                mma(T(), sums[half][j], {q.x, q.y, q.z, q.w}, {side ? key.z : key.x, side ? key.w : key.y});
              }
            }
        }
      }
    }
#pragma unroll
    for (int low = 0; low < 2; low++) {
      const int query = 16 * group + 8 * low + g;
      const Query &it = in.queries[query];
      const Bias bias = it.bias;
      const float scale = in.scales[query];
      float here = MINUS_INFINITY;
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int position = tile * PAGE + 8 * t + 2 * j + i;
          const bool sees = it.lowest <= position && position < it.end && tile < end;
          float score = (sums[0][j][2 * low + i] + sums[1][j][2 * low + i]) * scale;
          if (bias.table && sees) score = score + bias.at(position);
          scores[group][j][2 * low + i] = score;
          if (sees) here = max_of(score, here);
        }
      for (int lanes = 1; lanes < 4; lanes *= 2) here = max_of(here, __shfl_xor_sync(ALL, here, lanes));
      if (t == 0) in.greatest[query][warp] = here;
    }
  }

  // Channels that a warp blends, in eights, of one group; the values of so many tiles are under way.
  constexpr int BESIDE = WALKERS / SOME, MINE = CHANNELS * 4 / BESIDE, AHEAD = MINE > 2 ? 2 : 4;
  const int group = warp / BESIDE, eight = warp % BESIDE * MINE;
  const auto is_there = [&](int at) { return first + at < end && (first + at + 1) * PAGE > lowest; };
  const bool is_whole = end * PAGE <= text.committed;
  uint4 values[AHEAD][MINE];
  const auto fetch_values = [&](uint4(&to)[MINE], int at) {
    const uint32_t page = __shfl_sync(ALL, pages, at);
    if (!is_there(at)) return;
#pragma unroll
    for (int mine = 0; mine < MINE; mine++) to[mine] = text.value(page, 8 * t, 8 * (eight + mine) + g);
  };
  if (is_whole) {
#pragma unroll
    for (int at = 0; at < AHEAD; at++) fetch_values(values[at], at);
  }
  __syncthreads();

#pragma unroll
  for (int group = 0; group < SOME; group++) {
    unsigned words[2][4][2];
#pragma unroll
    for (int low = 0; low < 2; low++) {
      const int query = 16 * group + 8 * low + g;
      const Query &it = in.queries[query];
      float greatest = MINUS_INFINITY, total = 0.0f;
#pragma unroll
      for (int at = 0; at < PART; at++) greatest = max_of(in.greatest[query][at], greatest);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float weights[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int position = tile * PAGE + 8 * t + 2 * j + i;
          const bool sees = it.lowest <= position && position < it.end && tile < end;
          weights[i] = sees ? exp_of(scores[group][j][2 * low + i] - greatest) : 0.0f;
        }
        total = total + (weights[0] + weights[1]);
        split<T>(weights[0] * RAISED, weights[1] * RAISED, words[0][j][low], words[1][j][low]);
      }
      for (int lanes = 1; lanes < 4; lanes *= 2) total = total + __shfl_xor_sync(ALL, total, lanes);
      if (t == 0) in.totals[query][warp] = total;
    }
#pragma unroll
    for (int side = 0; side < 2; side++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        in.weights[warp][group][side][half][lane] = {words[half][2 * side][0], words[half][2 * side][1],
                                                     words[half][2 * side + 1][0], words[half][2 * side + 1][1]};
  }
  __syncthreads();

  float sums[2][MINE][4] = {};
  const auto blend = [&](const uint4(&values)[MINE], int at) {
#pragma unroll
    for (int side = 0; side < 2; side++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 weights = in.weights[at][group][side][half][lane];
#pragma unroll
        for (int mine = 0; mine < MINE; mine++) {
          const uint4 value = values[mine];
          mma(T(), sums[half][mine], {weights.x, weights.y, weights.z, weights.w},
              {side ? value.z : value.x, side ? value.w : value.y});
        }
      }
  };
  if (is_whole) {
#pragma unroll
    for (int at = 0; at < PART; at++) {
      if (is_there(at)) blend(values[at % AHEAD], at);
      if (at + AHEAD < PART) fetch_values(values[at % AHEAD], at + AHEAD);
    }
  } else {
#pragma unroll 1
    for (int at = 0; at < PART; at++) {
      const uint32_t page = __shfl_sync(ALL, pages, at);
      if (!is_there(at)) continue;
#pragma unroll
      for (int mine = 0; mine < MINE; mine++)
        values[0][mine] = text.any_value(page, first + at, 8 * t, 8 * (eight + mine) + g);
      blend(values[0], at);
    }
  }
#pragma unroll
  for (int low = 0; low < 2; low++) {
    const int query = 16 * group + 8 * low + g;
    const Query &it = in.queries[query];
    // Whoever sees none of the part has none.
    if (query >= count || max(it.lowest, first * PAGE) >= min(it.end, end * PAGE)) continue;
    float greatest = MINUS_INFINITY, total = 0.0f;
#pragma unroll
    for (int at = 0; at < PART; at++) {
      greatest = max_of(in.greatest[query][at], greatest);
      total = total + in.totals[query][at];
    }
    float *const seen = partial + (it.index * parts + part) * (2 + d), *const to = parts > 1 ? seen + 2 : out + it.index * d;
    if (parts > 1 && eight == 0 && t == 0) {
      seen[0] = greatest;
      seen[1] = total;
    }
#pragma unroll
    for (int mine = 0; mine < MINE; mine++) {
      const int channel = 8 * (eight + mine) + 2 * t;
      float x[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        // Zeros lose their sign: what weighs nothing may take it, or not.
        x[i] = (sums[0][mine][2 * low + i] + sums[1][mine][2 * low + i]) * LOWERED + 0.0f;
        if (parts == 1) x[i] = x[i] / total;
      }
      if (d % 2 == 0) {
        if (channel < d) *(float2 *)(to + channel) = {x[0], x[1]};
      } else {
        if (channel < d) to[channel] = x[0];
        if (channel + 1 < d) to[channel + 1] = x[1];
      }
    }
  }
}

template <class T, int CHANNELS, class Ask>
DEVICE void hear(Crowd<T, CHANNELS> &in, const Text<T> &text, int count, int first, int end, float scale, bool bounded,
                 Ask ask, int part, int parts, float *out, float *partial) {
  if (threadIdx.x == 0) in.text = text;
  __syncthreads();
  if (count <= 16 || Crowd<T, CHANNELS>::GROUPS == 1)
    hear_some<1>(in, count, first, end, scale, bounded, ask, part, parts, out, partial);
  else
    hear_some<Crowd<T, CHANNELS>::GROUPS>(in, count, first, end, scale, bounded, ask, part, parts, out, partial);
}
