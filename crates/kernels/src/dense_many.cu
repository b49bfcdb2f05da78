// The product of many rows with dense weights of sixteen bits: the chains and the bits of dense.cu.
//
// A block takes one chain after the other, of 32, 64 or 128 rows and up to 192 outputs, and copies both through a ring in
// shared memory, where a warp finds a half of the rows and a quarter of the outputs. Weights with one chain are done then; of
// others each chain's sums are written down, and `add_chains` adds them up, in their order, by as many threads as there are sums.
//
// How wide a block's outputs are is the launch's choice, and changes no bits: so that every processor has as much to do. By
// hand, for 128 rows and 168 outputs, as for the 22,016 outputs of a 7B model's gate and up: a step of 64 inputs brings 21
// KiB of weights from memory, for which a processor has 1480 cycles at 14.5 bytes a cycle (3.35 TB/s over 132), and 16 KiB of
// activations from the second-level cache. 672 multiplications of 16 × 8 × 16 take 1344 cycles where `mma` does 1024
// multiply-adds a cycle; for them warps read 116 KiB of shared memory, 928 cycles at 128 bytes.

#pragma once
#include "dense.cu"

// The outputs of a warp, in eights, and steps of a ring, at most.
constexpr int WIDEST = 6, STAGES = 8;
// Warps that share rows, and such groups.
constexpr int COLUMNS = 4, HALVES_OF_ROWS = 2;

// One of a block's tasks: a chain of some outputs of a product.
struct Task {
  const uint4 *weights;
  float *out;
  int n, chains, chain, first;

  // width: outputs, in eights.
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
  // Eights of outputs that there are.
  DEVICE_METHOD int eights(int width) const { return min((n + 7) / 8 - first / 8, width); }
};

// Waits for this thread's copies, but for the last so many groups: as many as a ring has stages, less two.
DEVICE void await_ring(int stages) {
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

// What a block copies, task by task: eights of rows, then of outputs, for steps of 64 inputs.
template <int ROWS> struct Supply {
  static constexpr int THREADS = 32 * WARPS, EACH = THREADS / PIECE;
  const Products &products;
  const Plan &plan;
  const uint4 *x, *from_w = nullptr, *from_x = nullptr;
  int depth, width, rows, task, left = 0, eights = 0;

  DEVICE_METHOD Supply(const Products &products, const Plan &plan, const uint4 *x, int m, int depth, int width)
      : products(products), plan(plan), x(x), depth(depth), width(width), task(blockIdx.x) {
    rows = min((m + 7) / 8 - (int)blockIdx.y * ROWS, ROWS);
    open();
  }
  DEVICE_METHOD void open() {
    for (; task < plan.ends[PRODUCTS - 1]; task += gridDim.x) {
      const Task at(products, plan, task, width);
      const Chain chain(depth, at.chains, at.chain);
      if (chain.count == 0) continue;
      // A thread copies each fourth piece from its own on.
      const int piece = threadIdx.x / PIECE, word = threadIdx.x % PIECE;
      from_w = at.weights + ((size_t)(at.first / 8 + piece) * depth + chain.first) * PIECE + word;
      from_x = x + ((size_t)(blockIdx.y * ROWS + piece) * depth + chain.first) * PIECE + word;
      eights = at.eights(width);
      left = chain.count;
      return;
    }
  }
  DEVICE_METHOD bool is_done() const { return task >= plan.ends[PRODUCTS - 1]; }
  DEVICE_METHOD uint4 *stage(int at) const { return room + at * (ROWS + width) * PIECE + threadIdx.x; }
  // Weights of the step that is `ahead` of the next one, in the same chain.
  DEVICE_METHOD void copy_weights(int to, int ahead) const {
#pragma unroll
    for (int i = 0; i < COLUMNS * WIDEST / EACH; i++)
      if ((int)threadIdx.x / PIECE + i * EACH < eights)
        copy(stage(to) + ROWS * PIECE + i * THREADS, from_w + (size_t)i * EACH * depth * PIECE + ahead * PIECE, true);
  }
  DEVICE_METHOD void copy_rows(int to) const {
#pragma unroll
    for (int i = 0; i < ROWS / EACH; i++)
      if ((int)threadIdx.x / PIECE + i * EACH < rows)
        copy(stage(to) + i * THREADS, from_x + (size_t)i * EACH * depth * PIECE, true);
  }
  // Ends a step.
  DEVICE_METHOD void next() {
    from_w += PIECE;
    from_x += PIECE;
    if (--left == 0) {
      task += gridDim.x;
      open();
    }
  }
  DEVICE_METHOD void copy_step(int to) {
    if (!is_done()) {
      copy_weights(to, 0);
      copy_rows(to);
      next();
    }
    end_copies();
  }
};

// x: [m / 8, depth] pieces; a product's output: [chains, m, n].
template <class T, int TALL>
DEVICE void dense_many(const Products &products, const Plan &plan, const uint4 *x, const float *scales, int m, int depth,
                       int width, int stages) {
  constexpr int ROWS = 2 * HALVES_OF_ROWS * TALL;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int half = warp / COLUMNS, column = warp % COLUMNS, first_row = blockIdx.y * 8 * ROWS;
  Supply<ROWS> supply(products, plan, x, m, depth, width);
  const int early = supply.is_done() ? 0 : min(stages - 1, supply.left);
  for (int stage = 0; stage < early; stage++) supply.copy_weights(stage, stage);
  begin();
  for (int stage = 0; stage + 1 < stages; stage++) {
    if (stage >= early) {
      supply.copy_step(stage);
      continue;
    }
    supply.copy_rows(stage);
    supply.next();
    end_copies();
  }
  const bool has_rows = half * 2 * TALL < supply.rows;
  int stage = 0;
  for (int at = blockIdx.x; at < plan.ends[PRODUCTS - 1]; at += gridDim.x) {
    const Task task(products, plan, at, width);
    const Chain chain(depth, task.chains, task.chain);
    // Eights of outputs of this warp: every fourth one.
    const int wide = (task.eights(width) - column + COLUMNS - 1) / COLUMNS;
    float sums[TALL][WIDEST][4] = {};
    for (int step = 0; step < chain.count; step++, stage = stage + 1 == stages ? 0 : stage + 1) {
      await_ring(stages);
      __syncthreads();
      // Nobody reads the stage before this one any more.
      supply.copy_step(stage == 0 ? stages - 1 : stage - 1);
      if (!has_rows) continue;
      const uint4 *const here = room + stage * (ROWS + width) * PIECE + lane;
      const uint4 *const at_x = here + half * 2 * TALL * PIECE, *const at_w = here + (ROWS + column) * PIECE;
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
}

#define DENSE_MANY(name, T, TALL)                                                                                       \
  KERNEL(256) name(GIVEN(Products) products, GIVEN(Plan) plan, const uint4 *x, const float *scales, int m, int depth,   \
                   int width, int stages) {                                                                             \
    dense_many<T, TALL>(products, plan, x, scales, m, depth, width, stages);                                            \
  }

DENSE_MANY(dense_f16_32, __half, 1)
DENSE_MANY(dense_f16_64, __half, 2)
DENSE_MANY(dense_f16_128, __half, 4)
DENSE_MANY(dense_bf16_32, __nv_bfloat16, 1)
DENSE_MANY(dense_bf16_64, __nv_bfloat16, 2)
DENSE_MANY(dense_bf16_128, __nv_bfloat16, 4)

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
