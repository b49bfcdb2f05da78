// Keys and values that a branch has committed: kv.rs.
//
// A card's pages lie the other way round than a CPU's: a key's channels are neighbours, and a channel's values, which is
// how attention takes them sixteen bytes at a time (tile.cuh, halves.cuh).

#include "card/card.cuh"

// The layers of one launch: staged keys and values, [m, heads, d], and their pages.
constexpr int LAYERS = 64;
struct Layers {
  unsigned long long k[LAYERS], v[LAYERS], pages_k[LAYERS], pages_v[LAYERS];
};

// One block a move and layer: a staged row to its slot. moves: row, page and slot each.
template <class T> DEVICE void write(const Layers &layers, const uint32_t *moves, int heads, int d) {
  begin();
  const int layer = blockIdx.y;
  const float *k = (const float *)layers.k[layer], *v = (const float *)layers.v[layer];
  T *pages_k = (T *)layers.pages_k[layer], *pages_v = (T *)layers.pages_v[layer];
  const uint32_t *move = moves + 3 * blockIdx.x;
  const size_t row = move[0], page = move[1];
  const int slot = move[2];
  for (int i = threadIdx.x; i < heads * d; i += blockDim.x) {
    const int head = i / d, channel = i % d;
    const size_t tile = (page * heads + head) * d * PAGE;
    narrow(k[row * heads * d + i], pages_k[tile + slot * d + channel]);
    narrow(v[row * heads * d + i], pages_v[tile + channel * PAGE + slot]);
  }
}

KERNEL(256) write_f32(Layers layers, const uint32_t *moves, int heads, int d) { write<float>(layers, moves, heads, d); }
KERNEL(256) write_f16(Layers layers, const uint32_t *moves, int heads, int d) { write<__half>(layers, moves, heads, d); }
KERNEL(256) write_bf16(Layers layers, const uint32_t *moves, int heads, int d) {
  write<__nv_bfloat16>(layers, moves, heads, d);
}

// One block a row and layer: a staged row into its place among those that go to other cards,
// [layers, 2, rows, width], keys before values.
KERNEL(256) gather_rows(Layers layers, const uint32_t *rows, float *packed, int width) {
  begin();
  const int layer = blockIdx.y;
  const float *k = (const float *)layers.k[layer], *v = (const float *)layers.v[layer];
  const size_t from = (size_t)rows[blockIdx.x] * width;
  const size_t to = ((size_t)2 * layer * gridDim.x + blockIdx.x) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    packed[to + i] = k[from + i];
    packed[to + (size_t)gridDim.x * width + i] = v[from + i];
  }
}

// Pages over others, in every layer: a copy a block row, keys and then values of each layer by block layer. pages: from
// and to each; `words` is a page's length in words of four bytes.
struct Stores {
  unsigned long long k[LAYERS], v[LAYERS];
};
KERNEL(256) copy_page(Stores stores, const uint32_t *pages, int layers, int words) {
  begin();
  const int layer = blockIdx.z % layers;
  uint32_t *store = (uint32_t *)((int)blockIdx.z < layers ? stores.k[layer] : stores.v[layer]);
  const size_t from = pages[2 * blockIdx.x], to = pages[2 * blockIdx.x + 1];
  const size_t i = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
  if (i < (size_t)words) store[to * words + i] = store[from * words + i];
}

// Keys or values of a document, [n, heads, d], into tiles: keys [heads, tiles, PAGE, d], values [heads, tiles, d, PAGE].
template <class T>
DEVICE void share(const float *k, const float *v, T *tiles_k, T *tiles_v, int n, int heads, int d) {
  begin();
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (size_t)n * heads * d) return;
  const size_t position = i / d / heads, head = i / d % heads, channel = i % d;
  const size_t tile = (head * ((n + PAGE - 1) / PAGE) + position / PAGE) * PAGE * d, slot = position % PAGE;
  narrow(k[i], tiles_k[tile + slot * d + channel]);
  narrow(v[i], tiles_v[tile + channel * PAGE + slot]);
}

#define SHARE(name, T)                                                                                                  \
  KERNEL(256) name(const float *k, const float *v, T *tiles_k, T *tiles_v, int n, int heads, int d) {                   \
    share(k, v, tiles_k, tiles_v, n, heads, d);                                                                         \
  }
SHARE(share_f32, float)
SHARE(share_f16, __half)
SHARE(share_bf16, __nv_bfloat16)
