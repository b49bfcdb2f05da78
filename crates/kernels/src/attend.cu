// Attention over a branch's committed prefix and a row's ancestors: attend.rs.
//
// Single precision: a warp takes one row and up to four query heads of one key head, over up to 256 positions; the warps
// of a block are neighbours, which walk the same pages at the same time.
//
// Sixteen bits: the tiles of a row are of two kinds, and which is which follows from its position alone. A warp walks
// its own tile and the one before as above: drafts live there, whose rows have each their own ancestors. All tiles
// before them are the same keys and values for many rows, and go through tensor cores, a block for up to 32 queries. Their
// sums are joined like those of a long text.
//
// The sight is an array of words: for each row where its page table begins in it, its committed positions, where its path
// begins, and its own position.

#pragma once
#include "halves.cuh"
#include "tile.cuh"

// What every row of a step shares.
//
// q: [m, heads, d]; staged_k, staged_v: [m, kv_heads, d]; pages: [pages, kv_heads, ..]; window: 0 for none;
// bias: [heads, distances], or none; partial: [m, heads, parts, 2 + d].
template <class T> struct Forest {
  const float *q, *staged_k, *staged_v;
  const T *pages_k, *pages_v;
  const uint32_t *sight;
  const float *bias;
  float *out, *partial;
  int m, heads, kv_heads, d;
  float scale;
  int window, distances, parts;

  DEVICE_METHOD int group() const { return heads / kv_heads; }
  // Where a row's key or value is that this step has staged.
  DEVICE_METHOD size_t staged(uint32_t row, int kv_head) const { return ((size_t)row * kv_heads + kv_head) * d; }
  DEVICE_METHOD size_t page(uint32_t page, int kv_head) const { return ((size_t)page * kv_heads + kv_head) * d * PAGE; }
  DEVICE_METHOD Bias bias_of(int head, int position) const {
    return {bias ? bias + (size_t)head * distances : nullptr, distances, position, -1};
  }
};

// A row of the step, and what it sees.
struct Row {
  const uint32_t *pages, *path;
  int committed, position, lowest;

  DEVICE_METHOD Row(const uint32_t *sight, int row, int window)
      : pages(sight + sight[4 * row]), path(sight + sight[4 * row + 2]), committed(sight[4 * row + 1]),
        position(sight[4 * row + 3]), lowest(window > 0 && position + 1 > window ? position + 1 - window : 0) {}

  // The end of the tiles that tensor cores take where the cache has sixteen bits; attend.rs has the same.
  DEVICE_METHOD int shared_end() const { return max(position / PAGE - 1, 0); }
  // Whether it sees any of a part of them.
  DEVICE_METHOD bool sees(int part) const {
    return part * PART < shared_end() && min(part * PART + PART, shared_end()) * PAGE > lowest;
  }
};

// A number as the cache keeps it.
template <class T> DEVICE T kept(float x) {
  T stored;
  narrow(x, stored);
  return stored;
}

// A warp's row and heads over the tiles first..end, as part `part`.
template <class T, int CHANNELS, int QUERIES>
DEVICE void attend_alone(const Forest<T> &forest, Desk<CHANNELS, QUERIES> &desk, int row, int kv_head, int first_head,
                         int count, int first, int end, int part) {
  const int d = forest.d, lane = threadIdx.x % 32;
  const Row at(forest.sight, row, forest.window);
#pragma unroll
  for (int h = 0; h < QUERIES; h++)
    for (int i = lane; i < CHANNELS * 32; i += 32)
      desk.q[i][h] = h < count && i < d ? forest.q[((size_t)row * forest.heads + first_head + h) * d + i] : 0.0f;
  __syncwarp();
  Seen<CHANNELS, QUERIES> seen;
  seen.clear();
  const auto bias_of = [&](int h) { return forest.bias_of(first_head + h, at.position); };
  for (int tile = max(first, at.lowest / PAGE); tile < min(end, at.position / PAGE + 1); tile++) {
    const int start = tile * PAGE;
    const int from = max(at.lowest - start, 0), to = min(at.position + 1 - start, PAGE);
    // Pages that are not there hold nothing that a row sees.
    const size_t page = start < at.committed ? forest.page(at.pages[tile], kv_head) : 0;
    const T *page_k = forest.pages_k + page, *page_v = forest.pages_v + page;
    if (start + PAGE <= at.committed) {
      see(
          desk, seen, count, d, forest.scale, start, from, to, [&](int i) { return wide(page_k[i * PAGE + lane]); },
          [&](int slot, int i) { return wide(page_v[slot * d + i]); }, bias_of);
      continue;
    }
    const auto staged_at = [&](int slot) { return forest.staged(at.path[start + slot - at.committed], kv_head); };
    const bool is_committed = start + lane < at.committed, is_staged = !is_committed && lane < to;
    const float *staged_key = is_staged ? forest.staged_k + staged_at(lane) : nullptr;
    see(
        desk, seen, count, d, forest.scale, start, from, to,
        [&](int i) {
          return is_committed ? wide(page_k[i * PAGE + lane]) : is_staged ? wide(kept<T>(staged_key[i])) : 0.0f;
        },
        [&](int slot, int i) {
          return start + slot < at.committed ? wide(page_v[slot * d + i])
                                             : wide(kept<T>(forest.staged_v[staged_at(slot) + i]));
        },
        bias_of);
  }
  for (int h = 0; h < count; h++)
    finish(seen, h, d, (size_t)row * forest.heads + first_head + h, part, forest.parts, forest.out, forest.partial);
}

// Item `item` of a block's warps: rows outermost, so that neighbours walk the same pages.
template <class T, int CHANNELS, int QUERIES>
DEVICE void attend_single(const Forest<T> &forest, Desk<CHANNELS, QUERIES> *desks) {
  const int group = forest.group(), chunks = (group + QUERIES - 1) / QUERIES;
  const int warp = threadIdx.x / 32, item = blockIdx.x * (blockDim.x / 32) + warp;
  const int row = item / chunks, kv_head = blockIdx.y, part = blockIdx.z, chunk = item % chunks * QUERIES;
  if (row >= forest.m) return;
  attend_alone(forest, desks[warp], row, kv_head, kv_head * group + chunk, min(group - chunk, QUERIES), part * PART,
               part * PART + PART, part);
}

// The rows whose own tiles a block walks, after `before` blocks of another kind.
template <class T, int CHANNELS, int QUERIES>
DEVICE void attend_own(const Forest<T> &forest, Desk<CHANNELS, QUERIES> *desks, int before) {
  const int group = forest.group(), chunks = (group + QUERIES - 1) / QUERIES;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int item = (blockIdx.x - before) * (blockDim.x / 32) + warp;
  const int row = item / chunks % forest.m, kv_head = item / chunks / forest.m, chunk = item % chunks * QUERIES;
  if (kv_head >= forest.kv_heads) return;
  const int first_head = kv_head * group + chunk, count = min(group - chunk, QUERIES), last = forest.parts - 1;
  const Row at(forest.sight, row, forest.window);
  attend_alone(forest, desks[warp], row, kv_head, first_head, count, at.shared_end(), at.position / PAGE + 1, last);
  // Other parts than those it sees are nobody's.
  for (int i = lane; i < last * count; i += 32)
    if (!at.sees(i / count)) {
      float *part = forest.partial +
                    (((size_t)row * forest.heads + first_head + i % count) * forest.parts + i / count) * (2 + forest.d);
      part[0] = MINUS_INFINITY;
      part[1] = 0.0f;
    }
}

// Words of a crowd: where its rows begin, how many they are, the row with the longest path, and the end of its tiles.
constexpr int CROWD_WORDS = 4;

// Some queries of a crowd, row by row over the heads of a key head, over one part. Rows of a crowd have the same keys
// wherever two of them see a tile.
template <class T, int CHANNELS>
DEVICE void attend_together(const Forest<T> &forest, Crowd<T, CHANNELS> &in, int crowds, int chunks) {
  using In = Crowd<T, CHANNELS>;
  const int group = forest.group(), d = forest.d;
  const int part = blockIdx.x % (forest.parts - 1), rest = blockIdx.x / (forest.parts - 1);
  const int base = rest % chunks * In::QUERIES, kv_head = rest / chunks % forest.kv_heads;
  const uint32_t *crowd = forest.sight + crowds + rest / chunks / forest.kv_heads * CROWD_WORDS;
  const uint32_t *rows = forest.sight + crowd[0];
  const int count = min((int)crowd[1] * group - base, In::QUERIES);
  if (count <= 0) return;
  const auto row_of = [&](int query) { return Row(forest.sight, rows[(base + query) / group], forest.window); };
  int first = part * PART;
  if (forest.window > 0) {
    int lowest = row_of(0).lowest;
    for (int query = 1; query < count; query++) lowest = min(lowest, row_of(query).lowest);
    first = max(first, lowest / PAGE);
  }
  const int end = min((int)crowd[3], part * PART + PART);
  if (first >= end) return;
  const auto place = [&](int query) {
    return (size_t)rows[(base + query) / group] * forest.heads + kv_head * group + (base + query) % group;
  };
  const Row leader(forest.sight, crowd[2], forest.window);
  const int mine = min((int)threadIdx.x / SHARERS, count - 1);
  const Row me = row_of(mine);
  in.listen(count, d, forest.scale, [&](int query) { return forest.q + place(query) * d; });
  Heard<T, CHANNELS> heard;
  heard.walk(
      in, count, d, first, end,
      [&](int stage, int tile) {
        const int start = tile * PAGE;
        const size_t page = start < leader.committed ? forest.page(leader.pages[tile], kv_head) : 0;
        const T *page_k = forest.pages_k + page, *page_v = forest.pages_v + page;
        if (start + PAGE <= leader.committed) {
          in.copy_tile(stage, page_k, page_v, d);
          return;
        }
        for (int i = threadIdx.x; i < PAGE * d; i += CROWD) {
          const int slot = i / d, channel = i % d;
          const bool is_there = start + slot < leader.committed;
          const int staged = is_there ? 0 : start + slot - leader.committed;
          const size_t at = forest.staged(leader.path[staged], kv_head) + channel;
          const T key = is_there ? page_k[channel * PAGE + slot] : kept<T>(forest.staged_k[at]);
          const T value = is_there ? page_v[i] : kept<T>(forest.staged_v[at]);
          ((T *)in.key_at(stage, channel, slot / 8))[slot % 8] = key;
          ((T *)in.value_at(stage, slot, channel / 8))[channel % 8] = value;
        }
      },
      [&](int start, int &from, int &to) {
        from = max(me.lowest - start, 0);
        to = start < me.shared_end() * PAGE ? PAGE : 0;
      },
      [&] { return forest.bias_of(kv_head * group + (base + mine) % group, me.position); });
  heard.finish(in, count, d, true, [&](int query) {
    return row_of(query).sees(part) ? forest.partial + (place(query) * forest.parts + part) * (2 + d) : nullptr;
  });
}

#define OPERANDS(T)                                                                                                     \
  const float *q, const float *staged_k, const float *staged_v, const T *pages_k, const T *pages_v,                     \
      const uint32_t *sight, const float *bias, float *out, float *partial, int m, int heads, int kv_heads, int d,      \
      float scale, int window, int distances, int parts
#define FOREST(T)                                                                                                       \
  Forest<T>{q, staged_k, staged_v, pages_k, pages_v, sight, bias,   out,      partial,                                  \
          m, heads,    kv_heads, d,       scale,   window, distances, parts}

// Heads that share no keys are walked alone: three of four places would be empty.
#define ATTEND(name, CHANNELS)                                                                                          \
  KERNEL(256, 2) name(OPERANDS(float)) {                                                                                \
    begin();                                                                                                            \
    __shared__ Desk<CHANNELS, QUERIES> desks[WALKERS];                                                                  \
    const auto forest = FOREST(float);                                                                                  \
    if (heads == kv_heads)                                                                                              \
      attend_single(forest, (Desk<CHANNELS, 1> *)desks);                                                                \
    else                                                                                                                \
      attend_single(forest, desks);                                                                                     \
  }
// The first `together` blocks take crowds, the others rows.
#define ATTEND_HALVES(name, T, CHANNELS)                                                                                \
  KERNEL(256, 2) name(OPERANDS(T), int crowds, int chunks, int together) {                                              \
    begin();                                                                                                            \
    const auto forest = FOREST(T);                                                                                      \
    if ((int)blockIdx.x < together)                                                                                     \
      attend_together(forest, *(Crowd<T, CHANNELS> *)room, crowds, chunks);                                             \
    else if (heads == kv_heads)                                                                                         \
      attend_own(forest, (Desk<CHANNELS, 1> *)room, together);                                                          \
    else                                                                                                                \
      attend_own(forest, (Desk<CHANNELS, QUERIES> *)room, together);                                                    \
  }

ATTEND(attend_f32_2, 2)
ATTEND(attend_f32_4, 4)
ATTEND(attend_f32_8, 8)
ATTEND_HALVES(attend_f16_2, __half, 2)
ATTEND_HALVES(attend_f16_4, __half, 4)
ATTEND_HALVES(attend_f16_8, __half, 8)
ATTEND_HALVES(attend_bf16_2, __nv_bfloat16, 2)
ATTEND_HALVES(attend_bf16_4, __nv_bfloat16, 4)
ATTEND_HALVES(attend_bf16_8, __nv_bfloat16, 8)

// One block a query: joins its parts, those that saw nothing left out, in their order.
KERNEL(256) merge(const float *partial, float *out, int d, int parts) {
  begin();
  partial += (size_t)blockIdx.x * parts * (2 + d);
  float greatest = MINUS_INFINITY;
  for (int part = 0; part < parts; part++) greatest = max_of(partial[part * (2 + d)], greatest);
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = 0.0f, total = 0.0f;
    bool first = true;
    for (int part = 0; part < parts; part++) {
      const float *seen = partial + part * (2 + d);
      if (seen[1] == 0.0f) continue;
      const float weight = exp_of(seen[0] - greatest);
      // Added to nothing, a negative zero would lose its sign.
      sum = first ? seen[2 + i] * weight : sum + seen[2 + i] * weight;
      total = first ? seen[1] * weight : total + seen[1] * weight;
      first = false;
    }
    out[(size_t)blockIdx.x * d + i] = sum / total;
  }
}
