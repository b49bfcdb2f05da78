// One tile of attention, 32 keys and values, against the queries of a warp: tile.rs, the same bits.
//
// The warps of a block see the same tiles, one after the other, each with queries of its own. A tile lies in shared
// memory while the next one is copied. A lane is a key where scores are made and a channel where values are blended; both
// run in the CPU's order. What a row has staged stands in the places that committed positions leave free, and several
// rows' in one tile: a slot's place may be another's slot, so a row has a place for each of its own.
//
// A long text is cut into parts of 256 positions, always the same ones, that blocks walk apart; `merge` then joins a row's
// parts in their order.

#pragma once
#include "card/copy.cuh"
#include "exp.cuh"
#include "text.cuh"

// Tiles that one walk takes, and warps of a block.
constexpr int PART = 8;
constexpr int WALKERS = 8;

// The numbers of sixteen bytes.
DEVICE void unpack(float, const uint4 &from, float (&to)[4]) {
  to[0] = __int_as_float(from.x);
  to[1] = __int_as_float(from.y);
  to[2] = __int_as_float(from.z);
  to[3] = __int_as_float(from.w);
}
template <class T> DEVICE void unpack(T, const uint4 &from, float (&to)[8]) {
  widen(T(), from.x, to[0], to[1]);
  widen(T(), from.y, to[2], to[3]);
  widen(T(), from.z, to[4], to[5]);
  widen(T(), from.w, to[6], to[7]);
}

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
// its path, what is added to its scores, and its number among all.
struct Query {
  const float *q;
  const uint32_t *path;
  int committed, lowest, end;
  Bias bias;
  size_t index;

  // A query that sees nothing.
  DEVICE_METHOD static Query none() { return {nullptr, nullptr, 0, 0, 0, {nullptr, 0, 0, 0}, 0}; }
};
static_assert(sizeof(Query) == 64, "joint.rs says so");

// The slots of a tile that a query sees, and where this lane's slot is found.
struct Glance {
  int from, to, place;

  DEVICE_METHOD Glance() {}
  DEVICE_METHOD Glance(const Query &query, int start) {
    const int lane = threadIdx.x % 32, position = start + lane;
    from = max(query.lowest - start, 0);
    to = min(query.end - start, PAGE);
    place = query.committed <= position && position < query.end ? place_of(query.path[position - query.committed]) : lane;
  }
};

// What a block has in shared memory. Rows of keys and of values are sixteen bytes longer than they need be, so that
// eight lanes, each in a row of its own, read all banks at once.
template <class T, int CHANNELS> struct Desk {
  static constexpr int WIDTH = 32 * CHANNELS, EACH = 16 / sizeof(T);
  // Queries of a warp at most, and tiles at once.
  static constexpr int SEATS = CHANNELS == 8 ? 2 : 4, QUERIES = WALKERS * SEATS;
  static constexpr int STAGES = CHANNELS == 8 && sizeof(T) == 4 ? 1 : 2;

  T k[STAGES][PAGE][WIDTH + EACH];
  T v[STAGES][WIDTH][PAGE + EACH];
  float q[WALKERS][SEATS][WIDTH];
  float weights[WALKERS][PAGE][SEATS];
  Query queries[WALKERS][SEATS];

  // Starts the copies of a tile's first `count` slots: keys [PAGE, d], values [d, PAGE].
  DEVICE_METHOD void take(int stage, const T *keys, const T *values, int count, int d) {
    constexpr int PIECES = WIDTH / EACH, EIGHTS = PAGE / EACH;
    if (d % EACH == 0) {
      for (int i = threadIdx.x; i < count * PIECES; i += 32 * WALKERS) {
        const int slot = i / PIECES, channel = i % PIECES * EACH;
        if (channel < d) copy((uint4 *)&k[stage][slot][channel], keys + slot * d + channel, true);
      }
    } else {
      for (int slot = threadIdx.x / 32; slot < count; slot += WALKERS)
        for (int channel = threadIdx.x % 32; channel < d; channel += 32) k[stage][slot][channel] = keys[slot * d + channel];
    }
    const int whole = count / EACH;
    for (int i = threadIdx.x; i < d * EIGHTS; i += 32 * WALKERS) {
      const int channel = i / EIGHTS, piece = i % EIGHTS;
      if (piece < whole)
        copy((uint4 *)&v[stage][channel][piece * EACH], values + channel * PAGE + piece * EACH, true);
      else if (piece == whole)
        // Places behind these are other rows'.
        for (int slot = whole * EACH; slot < count; slot++) v[stage][channel][slot] = values[channel * PAGE + slot];
    }
    blank(stage, 0, count, d);
  }

  // Puts a staged row, [d], in its place: a warp does.
  DEVICE_METHOD void put(int stage, int place, const float *key, const float *value, int d) {
    for (int channel = threadIdx.x % 32; channel < d; channel += 32) {
      k[stage][place][channel] = kept<T>(key[channel]);
      v[stage][channel][place] = kept<T>(value[channel]);
    }
  }

  // Channels that are none meet zeros.
  DEVICE_METHOD void blank(int stage, int from, int to, int d) {
    if (d % EACH == 0) return;
    for (int i = threadIdx.x; i < PAGE * EACH; i += 32 * WALKERS) {
      const int slot = i / EACH, channel = d / EACH * EACH + i % EACH;
      if (from <= slot && slot < to && channel >= d) k[stage][slot][channel] = kept<T>(0.0f);
    }
  }
};

// What the queries of a warp have seen; a lane has channels lane, lane + 32, ….
template <int CHANNELS, int COUNT> struct Seen {
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

// The weights of a slot.
template <int SEATS, int COUNT> DEVICE void load(const float (&from)[SEATS], float (&to)[COUNT]) {
  if constexpr (COUNT == 4) {
    const float4 four = *(const float4 *)from;
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
  } else if constexpr (COUNT == 2) {
    const float2 two = *(const float2 *)from;
    to[0] = two.x;
    to[1] = two.y;
  } else {
    to[0] = from[0];
  }
}

// Lets a warp's queries see the tile that begins at position `start`.
template <class T, int CHANNELS, int COUNT>
DEVICE void see(Desk<T, CHANNELS> &desk, int stage, Seen<CHANNELS, COUNT> &seen, const Glance (&looks)[COUNT], int d,
                float scale, int start) {
  constexpr int EACH = Desk<T, CHANNELS>::EACH;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float even[COUNT] = {}, odd[COUNT] = {};
#pragma unroll(COUNT == 1 ? 4 : 2)
  for (int channel = 0; channel < d; channel += EACH) {
    float key[EACH];
    unpack(T(), *(const uint4 *)&desk.k[stage][lane][channel], key);
#pragma unroll
    for (int h = 0; h < COUNT; h++)
#pragma unroll
      for (int i = 0; i < EACH; i += 4) {
        const float4 q = *(const float4 *)&desk.q[warp][h][channel + i];
        even[h] = fmaf(q.x, key[i], even[h]);
        odd[h] = fmaf(q.y, key[i + 1], odd[h]);
        even[h] = fmaf(q.z, key[i + 2], even[h]);
        odd[h] = fmaf(q.w, key[i + 3], odd[h]);
      }
  }
  // Slots that all queries see in their own places.
  bool is_plain = true;
  int first = PAGE, end = 0;
#pragma unroll
  for (int h = 0; h < COUNT; h++) {
    const Glance look = looks[h];
    const bool sees = look.from <= lane && lane < look.to, sees_any = look.from < look.to;
    float score = __shfl_sync(ALL, (even[h] + odd[h]) * scale, look.place);
    const Query &query = desk.queries[warp][h];
    if (query.bias.table && sees) score = score + query.bias.at(start + lane);
    if (!sees) score = MINUS_INFINITY;
    const float greatest = max_of(warp_max(score), seen.greatest[h]);
    const float shrink = sees_any ? exp_of(seen.greatest[h] - greatest) : 1.0f;
    const float weight = sees_any ? exp_of(score - greatest) : 0.0f;
    const float sum = warp_sum(weight);
    if (sees_any) {
      seen.total[h] = seen.total[h] * shrink + sum;
      seen.greatest[h] = greatest;
      first = min(first, look.from);
      end = max(end, look.to);
    }
    desk.weights[warp][lane][h] = weight;
    is_plain = is_plain && ((sees && look.place == lane) || !query.q);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) seen.out[h][c] = seen.out[h][c] * shrink;
  }
  const unsigned plain = __ballot_sync(ALL, is_plain);
  __syncwarp();
  constexpr unsigned WHOLE = (1u << EACH) - 1;
  for (int piece = first / EACH * EACH; piece < end; piece += EACH) {
    if ((plain >> piece & WHOLE) == WHOLE) {
      float values[CHANNELS][EACH];
#pragma unroll
      for (int c = 0; c < CHANNELS; c++)
        unpack(T(), *(const uint4 *)&desk.v[stage][lane + 32 * c][piece], values[c]);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        float weights[COUNT];
        load(desk.weights[warp][piece + i], weights);
#pragma unroll
        for (int h = 0; h < COUNT; h++)
#pragma unroll
          for (int c = 0; c < CHANNELS; c++) seen.out[h][c] = fmaf(weights[h], values[c][i], seen.out[h][c]);
      }
      continue;
    }
#pragma unroll 1
    for (int slot = max(piece, first); slot < min(piece + EACH, end); slot++) {
      float value[CHANNELS] = {};
      int found = -1;
#pragma unroll
      for (int h = 0; h < COUNT; h++) {
        const int place = __shfl_sync(ALL, looks[h].place, slot);
        if (slot < looks[h].from || slot >= looks[h].to) continue;
        if (place != found) {
          found = place;
#pragma unroll
          for (int c = 0; c < CHANNELS; c++) value[c] = wide(desk.v[stage][lane + 32 * c][place]);
        }
        const float weight = desk.weights[warp][slot][h];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) seen.out[h][c] = fmaf(weight, value[c], seen.out[h][c]);
      }
    }
  }
  __syncwarp();
}

// Writes what query h has seen: the result where there is one part only, or the part for `merge`, [query, part]:
// greatest, total, and the blended values.
template <int CHANNELS, int COUNT>
DEVICE void finish(const Seen<CHANNELS, COUNT> &seen, int h, int d, size_t query, int part, int parts, float *out,
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

// A warp's queries over the tiles first..end, with `each` queries a warp, at most COUNT.
template <int COUNT, class T, int CHANNELS, class Fetch, class Ask>
DEVICE void walk_some(Desk<T, CHANNELS> &desk, int each, int count, int d, float scale, int first, int end, Fetch fetch,
                      Ask ask, int part, int parts, float *out, float *partial) {
  constexpr int STAGES = Desk<T, CHANNELS>::STAGES, WIDTH = Desk<T, CHANNELS>::WIDTH;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    if (first + stage < end) fetch(stage, first + stage);
    end_copies();
  }
  const int mine = max(min(each, count - warp * each), 0);
  // They wait in shared memory, since registers are few.
#pragma unroll
  for (int h = 0; h < COUNT; h++) {
    const Query query = h < mine ? ask(warp * each + h) : Query::none();
    if (lane == 0) desk.queries[warp][h] = query;
#pragma unroll
    for (int channel = lane; channel < WIDTH; channel += 32)
      desk.q[warp][h][channel] = h < mine && channel < d ? query.q[channel] : 0.0f;
  }
  __syncwarp();
  Seen<CHANNELS, COUNT> seen;
  seen.clear();
  for (int tile = first, stage = 0; tile < end; tile++, stage = (stage + 1) % STAGES) {
    Glance looks[COUNT];
#pragma unroll
    for (int h = 0; h < COUNT; h++) looks[h] = Glance(desk.queries[warp][h], tile * PAGE);
    await_copies<STAGES - 1>();
    __syncthreads();
    if (mine > 0) see(desk, stage, seen, looks, d, scale, tile * PAGE);
    if (tile + STAGES < end) {
      // Nobody reads this stage any more.
      __syncthreads();
      fetch(stage, tile + STAGES);
    }
    end_copies();
  }
#pragma unroll
  for (int h = 0; h < COUNT; h++)
    if (h < mine) finish(seen, h, d, desk.queries[warp][h].index, part, parts, out, partial);
}

// Lets the block's `count` queries see the tiles first..end, as part `part`. fetch(stage, tile): starts the copies of a
// tile; ask(query): who it is.
template <class T, int CHANNELS, class Fetch, class Ask>
DEVICE void walk(Desk<T, CHANNELS> &desk, int count, int d, float scale, int first, int end, Fetch fetch, Ask ask,
                 int part, int parts, float *out, float *partial) {
  // Dealt out evenly: a warp that has less to do is done sooner.
  const int each = (count + WALKERS - 1) / WALKERS;
  if (each <= 1)
    walk_some<1>(desk, each, count, d, scale, first, end, fetch, ask, part, parts, out, partial);
  else if (each == 2 || Desk<T, CHANNELS>::SEATS == 2)
    walk_some<2>(desk, each, count, d, scale, first, end, fetch, ask, part, parts, out, partial);
  else
    walk_some<Desk<T, CHANNELS>::SEATS>(desk, each, count, d, scale, first, end, fetch, ask, part, parts, out, partial);
}
