// Attention of many rows over the same keys: shared.rs.
//
// A block takes some rows of one document and one head, over one part of it: all warps see a tile of keys and values at
// the same time, or, where these have sixteen bits, tensor cores see the part.

#pragma once
#include "halves.cuh"

// Rows of a block at most, and documents of one launch, which reach the kernel with its arguments.
constexpr int BLOCK_ROWS = 32, DOCUMENTS = 32;
struct Documents {
  unsigned long long k[DOCUMENTS], v[DOCUMENTS], n[DOCUMENTS];
};

// blocks: document, first and number of its rows in `rows`, each; positions: by row, where there is a bias
// [heads, width].
template <class T, int CHANNELS>
DEVICE void attend_shared(const float *q, const Documents &documents, const uint32_t *blocks, const uint32_t *rows,
                          const float *bias, const uint32_t *positions, float *out, float *partial, int heads,
                          int kv_heads, int d, float scale, int width, int parts) {
  constexpr int QUERIES = sizeof(T) == 4 ? Desk<T, CHANNELS>::QUERIES : Crowd<T, CHANNELS>::QUERIES;
  constexpr int CHUNKS = BLOCK_ROWS / QUERIES;
  const uint32_t *block = blocks + 3 * (blockIdx.x / CHUNKS);
  const int base = blockIdx.x % CHUNKS * QUERIES, head = blockIdx.y, part = blockIdx.z;
  const int n = (int)documents.n[block[0]], tiles = (n + PAGE - 1) / PAGE;
  const int count = min((int)block[2] - base, QUERIES);
  if (count <= 0) return;
  rows += block[1] + base;
  const size_t at = (size_t)(head / (heads / kv_heads)) * tiles * d * PAGE;
  const T *k = (const T *)documents.k[block[0]] + at, *v = (const T *)documents.v[block[0]] + at;
  const int first = part * PART, end = min(part * PART + PART, tiles);
  const auto ask = [&](int query) {
    const uint32_t row = rows[query];
    const size_t index = (size_t)row * heads + head;
    const int origin = bias ? width / 2 - (int)positions[row] : 0;
    return Query{q + index * d, nullptr, n, 0, n, {bias ? bias + (size_t)head * width : nullptr, width, origin, 1}, index};
  };
  if constexpr (sizeof(T) == 4) {
    Desk<T, CHANNELS> &desk = *(Desk<T, CHANNELS> *)room;
    walk(
        desk, count, d, scale, first, end,
        [&](int stage, int tile) {
          desk.take(stage, k + (size_t)tile * d * PAGE, v + (size_t)tile * d * PAGE, PAGE, d);
        },
        ask, part, parts, out, partial);
  } else {
    const Text<T> text{k, v, (size_t)d * PAGE, 0, nullptr, nullptr, nullptr, nullptr, tiles * PAGE, d};
    if (first < end) {
      hear(*(Crowd<T, CHANNELS> *)room, text, count, first, end, scale, false, ask, part, parts, out, partial);
    } else if ((int)threadIdx.x < count) {
      // A shorter document has no such part.
      float *const none = partial + (ask(threadIdx.x).index * parts + part) * (2 + d);
      none[0] = MINUS_INFINITY;
      none[1] = 0.0f;
    }
  }
}

#define SHARED(name, ...)                                                                                               \
  KERNEL(256, 2) name(const float *q, Documents documents, const uint32_t *blocks, const uint32_t *rows,                   \
                   const float *bias, const uint32_t *positions, float *out, float *partial, int heads, int kv_heads,   \
                   int d, float scale, int width, int parts) {                                                          \
    begin();                                                                                                            \
    __VA_ARGS__(q, documents, blocks, rows, bias, positions, out, partial, heads, kv_heads, d, scale, width, parts);    \
  }

SHARED(attend_shared_f32_2, attend_shared<float, 2>)
SHARED(attend_shared_f32_4, attend_shared<float, 4>)
SHARED(attend_shared_f32_8, attend_shared<float, 8>)
SHARED(attend_shared_f16_2, attend_shared<__half, 2>)
SHARED(attend_shared_f16_4, attend_shared<__half, 4>)
SHARED(attend_shared_f16_8, attend_shared<__half, 8>)
SHARED(attend_shared_bf16_2, attend_shared<__nv_bfloat16, 2>)
SHARED(attend_shared_bf16_4, attend_shared<__nv_bfloat16, 4>)
SHARED(attend_shared_bf16_8, attend_shared<__nv_bfloat16, 8>)
