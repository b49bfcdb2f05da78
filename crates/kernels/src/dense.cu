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

// How the outputs of a launch's products are dealt out to blocks: of each product its chains, and where its turns end among
// those of all; on_card.rs makes it. A turn gives each of a block's warps a chain of eight outputs.
struct Plan {
  int chains[PRODUCTS], ends[PRODUCTS];
};

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

// One turn of a block.
struct Turn {
  const uint4 *weights;
  float *out;
  int n, chains, first, apart;

  DEVICE_METHOD Turn(const Products &all, const Plan &plan, int at) {
    int product = 0;
    while (product + 1 < PRODUCTS && at >= plan.ends[product]) product++;
    if (product > 0) at -= plan.ends[product - 1];
    weights = (const uint4 *)all.weights[product];
    out = (float *)all.outs[product];
    n = (int)all.n[product];
    chains = plan.chains[product];
    // Eights of outputs that are alone are dealt out so that blocks have as many as each other, to within one.
    const int blocks = gridDim.x, sides = WARPS / chains;
    first = chains == 1 ? at % blocks + at / blocks * blocks * sides : at * sides;
    apart = chains == 1 ? blocks : 1;
  }
  // The first of the eight outputs of the warps that are `side`; there may be none.
  DEVICE_METHOD int output(int side) const { return 8 * (first + side * apart); }
};

// A warp's way through the weights of its chains, turn by turn.
struct Feed {
  const Products &products;
  const Plan &plan;
  const uint4 *from = nullptr;
  int depth, turns, turn, left = 0;

  DEVICE_METHOD Feed(const Products &products, const Plan &plan, int depth)
      : products(products), plan(plan), depth(depth), turns(plan.ends[PRODUCTS - 1]), turn(blockIdx.x) {
    open();
  }
  // To the next turn of which the warp has something.
  DEVICE_METHOD void open() {
    for (; turn < turns; turn += gridDim.x) {
      const Turn at(products, plan, turn);
      const int warp = threadIdx.x / 32, output = at.output(warp / at.chains);
      const Chain chain(depth, at.chains, warp % at.chains);
      if (output >= at.n || chain.count == 0) continue;
      from = at.weights + ((size_t)(output / 8) * depth + chain.first) * PIECE + threadIdx.x % 32;
      left = chain.count;
      return;
    }
  }
  DEVICE_METHOD void copy_piece(uint4 *to) {
    if (turn < turns) {
      copy(to + threadIdx.x % 32, from, true);
      copy(to + threadIdx.x % 32 + 32, from + 32, true);
      from += PIECE;
      if (--left == 0) {
        turn += gridDim.x;
        open();
      }
    }
    end_copies();
  }
};

// Up to sixteen rows. x: [m / 8, depth] pieces; scales: what undoes a row's scaling, or nothing.
template <class T>
DEVICE void dense_few(const Products &products, const Plan &plan, const uint4 *x, const float *scales, int m, int depth) {
  __shared__ float sums[2][WARPS][16][8 + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint4(*const ring)[PIECE] = (uint4(*)[PIECE])room + warp * DENSE_RING;
  Feed feed(products, plan, depth);
#pragma unroll
  for (int i = 0; i + 1 < DENSE_RING; i++) feed.copy_piece(ring[i]);
  begin();
  const size_t lower = (size_t)depth * PIECE;
  int slot = 0, side = 0;
  for (int at = blockIdx.x; at < feed.turns; at += gridDim.x) {
    const Turn turn(products, plan, at);
    const Chain chain(depth, turn.chains, warp % turn.chains);
    const int output = turn.output(warp / turn.chains);
    float c[4] = {};
    if (output < turn.n) {
      const uint4 *in = x + (size_t)chain.first * PIECE + lane;
      for (int step = 0; step < chain.count; step++, in += PIECE) {
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
    }
    if (turn.chains == 1) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = i / 2 * 8 + g, column = output + 2 * t + i % 2;
        if (row < m && column < turn.n) turn.out[(size_t)row * turn.n + column] = scales ? c[i] * scales[row] : c[i];
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[side][warp][i / 2 * 8 + g][2 * t + i % 2] = c[i];
    __syncthreads();
    const int outputs = 8 * WARPS / turn.chains;
    for (int i = threadIdx.x; i < m * outputs; i += 32 * WARPS) {
      const int row = i / outputs, column = i % outputs, first = column / 8 * turn.chains;
      const int to = turn.output(column / 8) + column % 8;
      if (to >= turn.n) continue;
      float sum = sums[side][first][row][column % 8];
      for (int next = 1; next < turn.chains; next++) sum = sum + sums[side][first + next][row][column % 8];
      turn.out[(size_t)row * turn.n + to] = scales ? sum * scales[row] : sum;
    }
    side ^= 1;
  }
}

#define DENSE_FEW(name, T)                                                                                              \
  KERNEL(256, 2) name(GIVEN(Products) products, GIVEN(Plan) plan, const uint4 *x, const float *scales, int m,           \
                      int depth) {                                                                                      \
    dense_few<T>(products, plan, x, scales, m, depth);                                                                  \
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
