// Attention of many rows over the same keys: shared.rs.
//
// A block takes up to 32 rows of one document and one head, four a warp, so that a tile of keys and values is read
// once for all of them. Its warps walk in step.

#include "tile.cuh"

// Documents of one launch, which reach the kernel with its arguments.
constexpr int DOCUMENTS = 32;
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

#define SHARED(name, CHANNELS)                                                                                          \
  KERNEL(256) name(const float *q, Documents documents, const uint32_t *blocks, const uint32_t *rows,                  \
                   const float *bias, const uint32_t *positions, float *out, float *partial, int heads, int kv_heads,  \
                   int d, float scale, int width, int parts) {                                                          \
    attend_shared<CHANNELS>(q, documents, blocks, rows, bias, positions, out, partial, heads, kv_heads, d, scale,       \
                            width, parts);                                                                              \
  }

SHARED(attend_shared_2, 2)
SHARED(attend_shared_4, 4)
SHARED(attend_shared_8, 8)
