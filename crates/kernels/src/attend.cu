// Attention over a branch's committed prefix and a row's ancestors: attend.rs.
//
// Single precision: a block takes the rows of a *circle* and one key head, over up to 256 positions, a warp up to four
// queries. The rows of a circle walk the same tiles, but for what they have staged in the last two, which has room in
// the places that the branch's committed positions leave free there.
//
// Sixteen bits: the tiles of a row are of two kinds, and which is which follows from its position alone. Its own tile and
// the one before are walked by circles as above: drafts live there, whose rows have each their own ancestors. All tiles
// before them are the same keys and values for the rows of a *crowd*, and go through tensor cores, a block for up to 32
// queries. Their sums are joined like those of a long text.
//
// The sight is an array of words: for each row where its page table begins in it, its committed positions, where its path
// begins, and its own position. Crowds and circles follow behind pages and paths (sight.rs).

#pragma once
#include "halves.cuh"
#include "tile.cuh"

// What every row of a step shares.
//
// q: [m, heads, d]; staged_k, staged_v: [m, kv_heads, d]; pages_k: [pages, kv_heads, PAGE, d]; pages_v:
// [pages, kv_heads, d, PAGE]; window: 0 for none; bias: [heads, distances], or none; partial: [m, heads, parts, 2 + d].
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

  // Number `query` of those that `rows` have of a key head, row by row. `shared`: whether it sees what its row shares, else all.
  DEVICE_METHOD Query ask(const uint32_t *rows, int kv_head, int query, bool shared) const {
    const uint32_t row = rows[query / group()];
    const int head = kv_head * group() + query % group();
    const uint32_t *const words = sight + 4 * row;
    const int position = words[3];
    const size_t index = (size_t)row * heads + head;
    return {q + index * d,
            sight + words[2],
            (int)words[1],
            window > 0 ? max(position + 1 - window, 0) : 0,
            shared ? shared_end(position) * PAGE : position + 1,
            {bias ? bias + (size_t)head * distances : nullptr, distances, position, -1},
            index};
  }

  // The end of the tiles that a row shares where the cache has sixteen bits; sight/crowds.rs has the same.
  DEVICE_METHOD static int shared_end(int position) { return max(position / PAGE - 1, 0); }

  // A branch's text, as one key head has it.
  DEVICE_METHOD Text<T> text(uint32_t pages, uint32_t path, uint32_t committed, int kv_head) const {
    const size_t tile = (size_t)kv_head * d * PAGE, apart = (size_t)kv_heads * d;
    return {pages_k + tile, pages_v + tile, apart * PAGE, apart, sight + pages, staged_k + kv_head * d,
            staged_v + kv_head * d, sight + path, (int)committed, d};
  }
};

// Words of a circle: where its rows begin and how many they are, their own tile, and what they share: where its pages
// and its first row's path begin, and its committed positions; where the staged rows begin that any of them sees in the
// tile before their own and then in their own, and how many of each there are.
constexpr int CIRCLE_WORDS = 9;

// Queries base.. of a circle over the tiles of one part, or over their own where the cache has sixteen bits.
template <class T, int CHANNELS>
DEVICE void attend_circle(const Forest<T> &forest, Desk<T, CHANNELS> &desk, const uint32_t *circle, int kv_head, int base,
                          int part) {
  const uint32_t *rows = forest.sight + circle[0];
  const int tile = circle[2], group = forest.group(), d = forest.d;
  const Text<T> text = forest.text(circle[3], circle[4], circle[5], kv_head);
  const uint32_t *guests = forest.sight + circle[6];
  const int before = circle[7], own = circle[8];
  const int count = min((int)circle[1] * group - base, Desk<T, CHANNELS>::QUERIES);
  if (count <= 0) return;
  const auto ask = [&](int query) { return forest.ask(rows, kv_head, base + query, false); };
  int first = sizeof(T) == 4 ? part * PART : max(tile - 1, 0);
  const int end = sizeof(T) == 4 ? min(part * PART + PART, tile + 1) : tile + 1;
  if (forest.window > 0) {
    int lowest = ask(0).lowest;
    for (int query = group; query < count; query += group) lowest = min(lowest, ask(query).lowest);
    first = max(first, lowest / PAGE);
  }
  walk(
      desk, count, d, forest.scale, first, end,
      [&](int stage, int at) {
        const int start = at * PAGE, there = min(max(text.committed - start, 0), PAGE);
        if (there > 0) {
          const size_t page = text.pages[at] * text.page_apart;
          desk.take(stage, text.k + page, text.v + page, there, d);
        }
        // What is staged before the last two tiles is the same for all rows.
        const uint32_t *staged = at == tile ? guests + before : at == tile - 1 ? guests : text.path + (start + there - text.committed);
        const int count = at == tile ? own : at == tile - 1 ? before : PAGE - there;
        for (int i = threadIdx.x / 32; i < count; i += WALKERS) {
          const size_t row = row_of(staged[i]) * text.row_apart;
          desk.put(stage, there + i, text.staged_k + row, text.staged_v + row, d);
        }
        desk.blank(stage, there, there + count, d);
      },
      ask, part, forest.parts, forest.out, forest.partial);
  if constexpr (sizeof(T) == 2) {
    // Other parts than those that a row sees are nobody's.
    for (int i = threadIdx.x; i < count * part; i += 32 * WALKERS) {
      const Query query = forest.ask(rows, kv_head, base + i / part, true);
      const int at = i % part * PART * PAGE;
      if (max(at, query.lowest) < min(at + PART * PAGE, query.end)) continue;
      float *const none = forest.partial + (query.index * forest.parts + i % part) * (2 + d);
      none[0] = MINUS_INFINITY;
      none[1] = 0.0f;
    }
  }
}

// Words of a crowd: where its rows begin and how many they are; of the one with the longest path where its pages and its path
// begin, and its committed positions; and the end of their tiles.
constexpr int CROWD_WORDS = 6;

// Queries base.. of a crowd, row by row over the heads of a key head, over one part. Rows of a crowd have the same keys
// wherever two of them see a tile.
template <class T, int CHANNELS>
DEVICE void attend_crowd(const Forest<T> &forest, Crowd<T, CHANNELS> &in, const uint32_t *crowd, int kv_head, int base,
                         int part) {
  const uint32_t *rows = forest.sight + crowd[0];
  const int count = min((int)crowd[1] * forest.group() - base, Crowd<T, CHANNELS>::QUERIES);
  const int first = part * PART, end = min((int)crowd[5], first + PART);
  if (count <= 0 || first >= end) return;
  hear(
      in, forest.text(crowd[2], crowd[3], crowd[4], kv_head), count, first, end, forest.scale, forest.window > 0,
      [&](int query) { return forest.ask(rows, kv_head, base + query, true); }, part, forest.parts, forest.out,
      forest.partial);
}

#define OPERANDS(T)                                                                                                     \
  const float *q, const float *staged_k, const float *staged_v, const T *pages_k, const T *pages_v,                     \
      const uint32_t *sight, const float *bias, float *out, float *partial, int m, int heads, int kv_heads, int d,      \
      float scale, int window, int distances, int parts, int circles, int circles_at, int circle_chunks
#define FOREST(T)                                                                                                       \
  Forest<T>{q, staged_k, staged_v, pages_k, pages_v, sight, bias,   out,      partial,                                  \
          m, heads,    kv_heads, d,       scale,   window, distances, parts}

// A block a circle, some of its queries, a key head and a part; there may be more blocks than circles.
#define ATTEND(name, CHANNELS)                                                                                          \
  KERNEL(256, 2) name(OPERANDS(float)) {                                                                                \
    begin();                                                                                                            \
    using In = Desk<float, CHANNELS>;                                                                                   \
    const int circle = blockIdx.x / circle_chunks;                                                                      \
    if (circle < circles)                                                                                               \
      attend_circle(FOREST(float), *(In *)room, sight + circles_at + circle * CIRCLE_WORDS, blockIdx.y,                 \
                    blockIdx.x % circle_chunks * In::QUERIES, blockIdx.z);                                              \
  }
// The first `together` blocks take crowds, the others circles; both a key head after the other, and parts of crowds.
#define ATTEND_HALVES(name, T, CHANNELS)                                                                                \
  KERNEL(256, 2) name(OPERANDS(T), int crowds_at, int crowd_chunks, int together) {                                     \
    begin();                                                                                                            \
    const auto forest = FOREST(T);                                                                                      \
    if ((int)blockIdx.x < together) {                                                                                   \
      using In = Crowd<T, CHANNELS>;                                                                                    \
      const int part = blockIdx.x % (parts - 1), kv_head = blockIdx.x / (parts - 1) % kv_heads;                         \
      const int rest = blockIdx.x / (parts - 1) / kv_heads;                                                             \
      attend_crowd(forest, *(In *)room, sight + crowds_at + rest / crowd_chunks * CROWD_WORDS, kv_head,                 \
                   rest % crowd_chunks * In::QUERIES, part);                                                            \
    } else {                                                                                                            \
      using In = Desk<T, CHANNELS>;                                                                                     \
      const int item = blockIdx.x - together, kv_head = item % kv_heads, rest = item / kv_heads;                        \
      if (rest / circle_chunks < circles)                                                                               \
        attend_circle(forest, *(In *)room, sight + circles_at + rest / circle_chunks * CIRCLE_WORDS, kv_head,           \
                      rest % circle_chunks * In::QUERIES, parts - 1);                                                   \
    }                                                                                                                   \
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
