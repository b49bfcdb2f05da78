// Attention of many rows over the same keys: shared.rs.
//
// A block takes up to 32 rows of one document and one head, four a warp, so that a tile of keys and values is read
// once for all of them. Its warps walk in step.

#pragma once
#include "halves.cuh"

// Rows of a block, and documents of one launch, which reach the kernel with its arguments.
constexpr int BLOCK_ROWS = 32, DOCUMENTS = 32;
struct Documents {
  unsigned long long k[DOCUMENTS], v[DOCUMENTS], n[DOCUMENTS];
};

// blocks: document, first and number of its rows in `rows`, each; positions: by row, where there is a bias
// [heads, width].
template <int CHANNELS>
DEVICE void attend_shared(const float *q, const Documents &documents, const uint32_t *blocks, const uint32_t *rows,
                          const float *bias, const uint32_t *positions, float *out, float *partial, int heads,
                          int kv_heads, int d, float scale, int width, int parts) {
  __shared__ Desk<CHANNELS> desks[WALKERS];
  const uint32_t *block = blocks + 3 * blockIdx.x;
  const int head = blockIdx.y, part = blockIdx.z, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int n = (int)documents.n[block[0]], tiles = (n + PAGE - 1) / PAGE;
  // Rows are dealt out evenly, so that all warps have some.
  const int first = warp * QUERIES, left = (int)block[2] - first;
  if (left <= 0) return;
  const int count = left < QUERIES ? left : QUERIES;
  rows += block[1] + first;
  Desk<CHANNELS> &desk = desks[warp];
#pragma unroll
  for (int h = 0; h < QUERIES; h++)
    for (int i = lane; i < CHANNELS * 32; i += 32)
      desk.q[i][h] = h < count && i < d ? q[((size_t)rows[h] * heads + head) * d + i] : 0.0f;
  __syncwarp();
  Seen<CHANNELS> seen;
  seen.clear();
  const auto bias_of = [&](int h) {
    return Bias{bias ? bias + (size_t)head * width : nullptr, width, bias ? width / 2 - (int)positions[rows[h]] : 0, 1};
  };
  const size_t at = (size_t)(head / (heads / kv_heads)) * tiles * d * PAGE;
  const float *k = (const float *)documents.k[block[0]] + at, *v = (const float *)documents.v[block[0]] + at;
  const int end = min(part * PART + PART, tiles);
  for (int tile = part * PART; tile < end; tile++) {
    const float *tile_k = k + (size_t)tile * d * PAGE, *tile_v = v + (size_t)tile * d * PAGE;
    see(
        desk, seen, count, d, scale, tile * PAGE, 0, min(n - tile * PAGE, PAGE),
        [&](int i) { return tile_k[i * PAGE + lane]; }, [&](int slot, int i) { return tile_v[slot * d + i]; }, bias_of);
  }
  for (int h = 0; h < count; h++) finish(seen, h, d, (size_t)rows[h] * heads + head, part, parts, out, partial);
}

// The same with keys and values of sixteen bits, on tensor cores: a block takes some of the rows.
template <class T, int CHANNELS>
DEVICE void attend_shared_halves(const float *q, const Documents &documents, const uint32_t *blocks, const uint32_t *rows,
                                 const float *bias, const uint32_t *positions, float *out, float *partial, int heads,
                                 int kv_heads, int d, float scale, int width, int parts) {
  using In = Crowd<T, CHANNELS>;
  In &in = *(In *)room;
  constexpr int CHUNKS = BLOCK_ROWS / In::QUERIES;
  const uint32_t *block = blocks + 3 * (blockIdx.x / CHUNKS);
  const int base = blockIdx.x % CHUNKS * In::QUERIES, head = blockIdx.y, part = blockIdx.z;
  const int n = (int)documents.n[block[0]], tiles = (n + PAGE - 1) / PAGE;
  const int count = min((int)block[2] - base, In::QUERIES);
  if (count <= 0) return;
  rows += block[1] + base;
  const auto place = [&](int query) { return (size_t)rows[query] * heads + head; };
  in.listen(count, d, scale, [&](int query) { return q + place(query) * d; });
  const size_t at = (size_t)(head / (heads / kv_heads)) * tiles * d * PAGE;
  const T *k = (const T *)documents.k[block[0]] + at, *v = (const T *)documents.v[block[0]] + at;
  const int own = rows[min((int)threadIdx.x / SHARERS, count - 1)];
  const int origin = bias ? width / 2 - (int)positions[own] : 0;
  Heard<T, CHANNELS> heard;
  heard.walk(
      in, count, d, part * PART, min(part * PART + PART, tiles),
      [&](int stage, int tile) {
        in.copy_tile(stage, k + (size_t)tile * d * PAGE, v + (size_t)tile * d * PAGE, d);
      },
      [&](int start, int &from, int &to) {
        from = 0;
        to = min(n - start, PAGE);
      },
      [&] { return Bias{bias ? bias + (size_t)head * width : nullptr, width, origin, 1}; });
  heard.finish(in, count, d, parts > 1, [&](int query) {
    return parts > 1 ? partial + (place(query) * parts + part) * (2 + d) : out + place(query) * d;
  });
}

#define SHARED(name, ...)                                                                                               \
  KERNEL(256) name(const float *q, Documents documents, const uint32_t *blocks, const uint32_t *rows,                   \
                   const float *bias, const uint32_t *positions, float *out, float *partial, int heads, int kv_heads,   \
                   int d, float scale, int width, int parts) {                                                          \
    begin();                                                                                                            \
    __VA_ARGS__(q, documents, blocks, rows, bias, positions, out, partial, heads, kv_heads, d, scale, width, parts);    \
  }

SHARED(attend_shared_f32_2, attend_shared<2>)
SHARED(attend_shared_f32_4, attend_shared<4>)
SHARED(attend_shared_f32_8, attend_shared<8>)
SHARED(attend_shared_f16_2, attend_shared_halves<__half, 2>)
SHARED(attend_shared_f16_4, attend_shared_halves<__half, 4>)
SHARED(attend_shared_f16_8, attend_shared_halves<__half, 8>)
SHARED(attend_shared_bf16_2, attend_shared_halves<__nv_bfloat16, 2>)
SHARED(attend_shared_bf16_4, attend_shared_halves<__nv_bfloat16, 4>)
SHARED(attend_shared_bf16_8, attend_shared_halves<__nv_bfloat16, 8>)
