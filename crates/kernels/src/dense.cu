// The product with dense weights: dense.rs.
//
// Weights of sixteen bits meet activations rounded to their type on tensor cores, with sums in single precision. Inputs are
// cut into chains, as many as a weight's outputs say: few outputs need many chains, so that all processors have some. A
// chain adds up in the order of its inputs, and the chains are added in theirs. Which inputs meet in which sum follows from
// the weight alone, so a row's bits do not depend on how many rows there are, nor on its place among them. In single
// precision a warp takes an output, and a lane every thirty-second input.
//
// Up to sixteen rows (this file): a warp takes a chain of eight outputs, and its weights come through a ring of its own in
// shared memory, so that no barrier stands between it and memory: 56 KiB are under way a block, two blocks a processor. The
// first of them before the kernel begins: weights wait for nobody. More rows: dense_many.cu.

#pragma once
#include "card/copy.cuh"
#include "card/mma.cuh"
#include "round.cu"

constexpr int WARPS = 8;
// Pieces of a warp's ring.
constexpr int DENSE_RING = 8;

// Chains of a weight with so many outputs and steps of 64 inputs, of which a chain has four at least; on_card.rs has the
// same.
DEVICE int chains_of(int n, int depth) {
  int chains = n < 3072 ? 8 : n < 8192 ? 4 : 1;
  while (chains > 1 && 4 * chains > depth) chains /= 2;
  return chains;
}

// The steps of a chain: its first one, and how many.
struct Chain {
  int first, count;

  DEVICE_METHOD Chain(int depth, int chains, int at) {
    const int each = (depth + chains - 1) / chains;
    first = min(each * at, depth);
    count = min(each, depth - first);
  }
};

// What two lanes' inputs and four of another add to the sums of sixteen rows and eight outputs. Which input is which is
// free, as long as both sides agree: a lane's eight stand in a row in memory. a: of rows g and g + 8.
template <class T> DEVICE void multiply(float (&c)[4], const uint4 (&a)[2], const uint4 &b) {
  mma(T(), c, {a[0].x, a[1].x, a[0].y, a[1].y}, {b.x, b.y});
  mma(T(), c, {a[0].z, a[1].z, a[0].w, a[1].w}, {b.z, b.w});
}

// Outputs that a block takes at once: eight for each of the warps that do not share them.
struct Strip {
  const uint4 *weights;
  float *out;
  int n, chains, first;

  DEVICE_METHOD Strip(const Products &all, int at, int depth) {
    for (int product = 0;; product++) {
      n = (int)all.n[product];
      chains = chains_of(n, depth);
      const int strips = (n + outputs() - 1) / outputs();
      if (at < strips || product + 1 == PRODUCTS) {
        weights = (const uint4 *)all.weights[product];
        out = (float *)all.outs[product];
        break;
      }
      at -= strips;
    }
    first = at * outputs();
  }
  DEVICE_METHOD int outputs() const { return 8 * WARPS / chains; }
};

// A warp's way through the weights of its chains, strip by strip.
struct Feed {
  const Products &products;
  const uint4 *from = nullptr;
  int depth, strips, strip, left = 0;

  DEVICE_METHOD Feed(const Products &products, int depth, int strips)
      : products(products), depth(depth), strips(strips), strip(blockIdx.x) {
    open();
  }
  // To the next strip of which the warp has something.
  DEVICE_METHOD void open() {
    for (; strip < strips; strip += gridDim.x) {
      const Strip at(products, strip, depth);
      const int warp = threadIdx.x / 32, output = at.first + warp / at.chains * 8;
      const Chain chain(depth, at.chains, warp % at.chains);
      if (output >= at.n || chain.count == 0) continue;
      from = at.weights + ((size_t)(output / 8) * depth + chain.first) * PIECE + threadIdx.x % 32;
      left = chain.count;
      return;
    }
  }
  DEVICE_METHOD void copy_piece(uint4 *to) {
    if (strip < strips) {
      copy(to + threadIdx.x % 32, from, true);
      copy(to + threadIdx.x % 32 + 32, from + 32, true);
      from += PIECE;
      if (--left == 0) {
        strip += gridDim.x;
        open();
      }
    }
    end_copies();
  }
};

// Up to sixteen rows. scales: what undoes a row's scaling, or nothing.
template <class T>
DEVICE void dense_few(const Products &products, const uint4 *x, const float *scales, int m, int depth, int strips) {
  __shared__ float sums[2][WARPS][16][8 + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint4(*const ring)[PIECE] = (uint4(*)[PIECE])room + warp * DENSE_RING;
  Feed feed(products, depth, strips);
#pragma unroll
  for (int i = 0; i + 1 < DENSE_RING; i++) feed.copy_piece(ring[i]);
  begin();
  const size_t lower = (size_t)depth * PIECE;
  int slot = 0, turn = 0;
  for (int at = blockIdx.x; at < strips; at += gridDim.x, turn ^= 1) {
    const Strip strip(products, at, depth);
    const Chain chain(depth, strip.chains, warp % strip.chains);
    const bool has_some = strip.first + warp / strip.chains * 8 < strip.n;
    float c[4] = {};
    const uint4 *in = x + (size_t)chain.first * PIECE + lane;
#pragma unroll 2
    for (int step = 0; has_some && step < chain.count; step++, in += PIECE) {
      uint4 a[2][2];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int low = 0; low < 2; low++)
          a[half][low] = 8 * low + g < m ? in[half * 32 + low * lower] : uint4{0, 0, 0, 0};
      await_copies<DENSE_RING - 2>();
      __syncwarp();
      const uint4 b[2] = {ring[slot][lane], ring[slot][lane + 32]};
      // Everyone has read the piece before this one, whose place is filled again.
      feed.copy_piece(ring[slot == 0 ? DENSE_RING - 1 : slot - 1]);
      multiply<T>(c, a[0], b[0]);
      multiply<T>(c, a[1], b[1]);
      slot = slot + 1 == DENSE_RING ? 0 : slot + 1;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[turn][warp][i / 2 * 8 + g][2 * t + i % 2] = c[i];
    __syncthreads();
    const int outputs = strip.outputs();
    for (int i = threadIdx.x; i < m * outputs; i += 32 * WARPS) {
      const int row = i / outputs, column = i % outputs, first = column / 8 * strip.chains;
      if (strip.first + column >= strip.n) continue;
      float sum = sums[turn][first][row][column % 8];
      for (int next = 1; next < strip.chains; next++) sum = sum + sums[turn][first + next][row][column % 8];
      strip.out[(size_t)row * strip.n + strip.first + column] = scales ? sum * scales[row] : sum;
    }
  }
}

#define DENSE_FEW(name, T)                                                                                              \
  KERNEL(256, 2) name(GIVEN(Products) products, const uint4 *x, const float *scales, int m, int depth, int strips) {           \
    dense_few<T>(products, x, scales, m, depth, strips);                                                                \
  }

DENSE_FEW(dense_f16_16, __half)
DENSE_FEW(dense_bf16_16, __nv_bfloat16)

// A warp an output, for up to ROWS rows. Weights: [n, k].
template <int ROWS> DEVICE void dense_single(const Products &products, const float *x, int m, int k) {
  begin();
  const Product<float> product(products, blockIdx.x, WARPS);
  const int n = product.n, output = product.stretch * WARPS + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, first = blockIdx.y * ROWS;
  if (output >= n) return;
  const int rows = m - first < ROWS ? m - first : ROWS;
  const float *weight = product.weight + (size_t)output * k;
  x += (size_t)first * k;
  float sums[ROWS] = {};
#pragma unroll 4
  for (int i = lane; i < k; i += 32) {
    const float w = weight[i];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (r < rows) sums[r] = fmaf(w, x[(size_t)r * k + i], sums[r]);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float sum = warp_sum(sums[r]);
    if (lane == 0 && r < rows) product.out[(size_t)(first + r) * n + output] = sum;
  }
}

KERNEL(256) dense_f32_1(GIVEN(Products) products, const float *x, int m, int k) { dense_single<1>(products, x, m, k); }
KERNEL(256) dense_f32_8(GIVEN(Products) products, const float *x, int m, int k) { dense_single<8>(products, x, m, k); }
