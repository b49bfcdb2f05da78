// The product of many rows with dense weights of sixteen bits: the chains and the bits of dense.cu.
//
// A block takes one chain of 32, 64 or 128 rows and up to 192 outputs, and copies both through shared memory, where a warp
// finds a half of the rows and a quarter of the outputs. Weights with one chain are done then; of others each chain's
// sums are written down, and `add_chains` adds them up, in their order, by as many threads as there are sums.
//
// How wide blocks are is the launch's choice, and changes no bits: so many outputs that there is a block for every
// processor. By hand, for a block of 128 rows and 168 outputs, as for the 22,016 outputs of a 7B model's gate and up: a step
// of 64 inputs brings 21 KiB of weights from memory, for which a processor has 1480 cycles at 14.5 bytes a cycle (3.35 TB/s
// over 132), and 16 KiB of activations from the second-level cache. 672 multiplications of 16 × 8 × 16 take 1344 cycles
// where `mma` does 1024 multiply-adds a cycle; for them warps read 116 KiB of shared memory, 928 cycles at 128 bytes.

#pragma once
#include "dense.cu"

// Steps that are under way or used at a time, at most, and the outputs of a warp, in eights.
constexpr int STAGES = 8, WIDEST = 6;
// Warps that share rows, and such groups.
constexpr int COLUMNS = 4, HALVES_OF_ROWS = 2;

// The block's product, outputs and chain. A turn is one of these here.
struct Task {
  const uint4 *weights;
  float *out;
  int n, chains, chain, first;

  // width: outputs of a block, in eights.
  DEVICE_METHOD Task(const Products &all, const Plan &plan, int at, int width) {
    int product = 0;
    while (product + 1 < PRODUCTS && at >= plan.ends[product]) product++;
    if (product > 0) at -= plan.ends[product - 1];
    weights = (const uint4 *)all.weights[product];
    out = (float *)all.outs[product];
    n = (int)all.n[product];
    chains = plan.chains[product];
    chain = at % chains;
    first = at / chains * width * 8;
  }
};

// Waits for this thread's copies, but for the last so many groups: as many as there are stages, less two.
DEVICE void await_stage(int stages) {
  switch (stages) {
  case 3: return await_copies<1>();
  case 4: return await_copies<2>();
  case 5: return await_copies<3>();
  case 6: return await_copies<4>();
  case 7: return await_copies<5>();
  case STAGES: return await_copies<STAGES - 2>();
  default: return await_copies<0>();
  }
}

// x: [m / 8, depth] pieces; a product's output: [chains, m, n].
template <class T, int TALL>
DEVICE void dense_many(const Products &products, const Plan &plan, const uint4 *x, const float *scales, int m, int depth,
                       int width, int stages) {
  // Pieces of a step: of rows, then of outputs.
  constexpr int ROWS = 2 * HALVES_OF_ROWS * TALL, THREADS = 32 * WARPS, EACH = THREADS / PIECE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Task task(products, plan, blockIdx.x, width);
  const Chain chain(depth, task.chains, task.chain);
  const int first_row = blockIdx.y * 8 * ROWS;
  const int rows = min((m + 7) / 8 - first_row / 8, ROWS), mine = min((task.n + 7) / 8 - task.first / 8, width);
  const int stage_words = (ROWS + width) * PIECE;

  // Where this thread copies from: each fourth piece from its own on.
  const int piece = threadIdx.x / PIECE, word = threadIdx.x % PIECE;
  const uint4 *from_w = task.weights + ((size_t)(task.first / 8 + piece) * depth + chain.first) * PIECE + word;
  const uint4 *from_x = x + ((size_t)(first_row / 8 + piece) * depth + chain.first) * PIECE + word;
  const size_t apart = (size_t)EACH * depth * PIECE;
  const auto fetch_weights = [&](int stage, int step) {
    if (step >= chain.count) return;
    uint4 *const to = room + stage * stage_words + ROWS * PIECE + threadIdx.x;
    const uint4 *const from = from_w + (size_t)step * PIECE;
#pragma unroll
    for (int i = 0; i < COLUMNS * WIDEST / EACH; i++)
      if (piece + i * EACH < mine) copy(to + i * THREADS, from + i * apart, true);
  };
  const auto fetch_rows = [&](int stage, int step) {
    if (step >= chain.count) return;
    uint4 *const to = room + stage * stage_words + threadIdx.x;
    const uint4 *const from = from_x + (size_t)step * PIECE;
#pragma unroll
    for (int i = 0; i < ROWS / EACH; i++)
      if (piece + i * EACH < rows) copy(to + i * THREADS, from + i * apart, true);
  };
  for (int stage = 0; stage + 1 < stages; stage++) fetch_weights(stage, stage);
  begin();
  for (int stage = 0; stage + 1 < stages; stage++) {
    fetch_rows(stage, stage);
    end_copies();
  }

  const int half = warp / COLUMNS, column = warp % COLUMNS;
  // Eights of outputs of this warp: every fourth one.
  const int wide = (mine - column + COLUMNS - 1) / COLUMNS;
  const bool has_some = half * 2 * TALL < rows;
  float sums[TALL][WIDEST][4] = {};
  for (int step = 0, stage = 0; step < chain.count; step++, stage = stage + 1 == stages ? 0 : stage + 1) {
    await_stage(stages);
    __syncthreads();
    // Nobody reads the stage before this one any more.
    const int free = stage == 0 ? stages - 1 : stage - 1;
    fetch_weights(free, step + stages - 1);
    fetch_rows(free, step + stages - 1);
    end_copies();
    if (!has_some) continue;
    const uint4 *const at = room + stage * stage_words + lane;
    const uint4 *const at_x = at + half * 2 * TALL * PIECE, *const at_w = at + (ROWS + column) * PIECE;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      uint4 a[TALL][2];
#pragma unroll
      for (int tall = 0; tall < TALL; tall++)
#pragma unroll
        for (int low = 0; low < 2; low++) a[tall][low] = at_x[(2 * tall + low) * PIECE + side * 32];
#pragma unroll
      for (int i = 0; i < WIDEST; i++) {
        if (i >= wide) break;
        const uint4 b = at_w[i * COLUMNS * PIECE + side * 32];
#pragma unroll
        for (int tall = 0; tall < TALL; tall++) multiply<T>(sums[tall][i], a[tall], b);
      }
    }
  }
  float *const out = task.out + (size_t)task.chain * m * task.n;
  // Pairs of outputs stand together where n is even.
  const bool in_pairs = task.n % 2 == 0;
#pragma unroll
  for (int tall = 0; tall < TALL; tall++)
#pragma unroll
    for (int low = 0; low < 2; low++) {
      const int row = first_row + (half * TALL + tall) * 16 + low * 8 + g;
      if (row >= m) continue;
      const float scale = scales && task.chains == 1 ? scales[row] : 1.0f;
#pragma unroll
      for (int i = 0; i < WIDEST; i++) {
        if (i >= wide) break;
        const int output = task.first + (i * COLUMNS + column) * 8 + 2 * t;
        float *const to = out + (size_t)row * task.n + output;
        const float2 pair = {sums[tall][i][2 * low] * scale, sums[tall][i][2 * low + 1] * scale};
        if (in_pairs) {
          if (output < task.n) *(float2 *)to = pair;
        } else {
          if (output < task.n) to[0] = pair.x;
          if (output + 1 < task.n) to[1] = pair.y;
        }
      }
    }
}

#define DENSE_MANY(name, T, TALL, BLOCKS)                                                                               \
  KERNEL(256, BLOCKS) name(GIVEN(Products) products, GIVEN(Plan) plan, const uint4 *x, const float *scales, int m,      \
                           int depth, int width, int stages) {                                                          \
    dense_many<T, TALL>(products, plan, x, scales, m, depth, width, stages);                                            \
  }

DENSE_MANY(dense_f16_32, __half, 1, 2)
DENSE_MANY(dense_f16_64, __half, 2, 2)
DENSE_MANY(dense_f16_128, __half, 4, 1)
DENSE_MANY(dense_bf16_32, __nv_bfloat16, 1, 2)
DENSE_MANY(dense_bf16_64, __nv_bfloat16, 2, 2)
DENSE_MANY(dense_bf16_128, __nv_bfloat16, 4, 1)

// Adds up chains: the weights of `products` are sums here, [chains, m, n]. A block row each product.
KERNEL(256) add_chains(GIVEN(Products) products, GIVEN(Plan) plan, const float *scales, int m) {
  begin();
  const int n = (int)products.n[blockIdx.y], chains = plan.chains[blockIdx.y];
  const float *const from = (const float *)products.weights[blockIdx.y];
  float *const to = (float *)products.outs[blockIdx.y];
  const size_t count = (size_t)m * n;
  for (size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += 4 * (size_t)gridDim.x * blockDim.x) {
    if (count % 4 == 0) {
      float4 sum = *(const float4 *)(from + i);
      for (int chain = 1; chain < chains; chain++) {
        const float4 next = *(const float4 *)(from + chain * count + i);
        sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
      }
      if (scales)
        sum = {sum.x * scales[i / n], sum.y * scales[(i + 1) / n], sum.z * scales[(i + 2) / n], sum.w * scales[(i + 3) / n]};
      *(float4 *)(to + i) = sum;
      continue;
    }
    for (size_t at = i; at < min(i + 4, count); at++) {
      float sum = from[at];
      for (int chain = 1; chain < chains; chain++) sum = sum + from[chain * count + at];
      to[at] = scales ? sum * scales[at / n] : sum;
    }
  }
}
