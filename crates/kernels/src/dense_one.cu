// The product of one row with dense weights of sixteen bits: the bits of dense.cu.
//
// What makes the row's activations (a norm, the norm of a sum, a gate, or nothing but their rounding) is done by every
// block that needs them, while its first weights are on their way: a kernel less to wait for, and memory is not idle
// meanwhile.

#pragma once
#include "dense.cu"
#include "elementwise.cu"
#include "norm.cu"
#include "query.cuh"

// How activations are made: the order of Making in operand.rs. Attention that is joined has heads of `d` channels, each in
// `count` parts behind each other (query.cuh), and from head to head `apart` numbers.
enum Making { ROUNDED, NORMED, SUM_NORMED, GATED_ROW, JOINED };
struct Recipe {
  const float *x, *y, *weight;
  float *sum;
  float eps;
  int making, activation, k, d, count, apart;
};

// The row in sixteen bits, eight numbers a word; get(eight, x): eight numbers of it.
template <class T, class Get> DEVICE float round_whole(uint4 *to, int depth, Get get) {
  Scaling16 scaling(0);
  float x[8];
  if (scales_rows(T())) {
    int bits = 0;
    for (int eight = threadIdx.x; eight < 8 * depth; eight += blockDim.x) {
      get(eight, x);
#pragma unroll
      for (int i = 0; i < 8; i++) bits = max(bits, __float_as_int(x[i]) & 0x7fffffff);
    }
    scaling = Scaling16(block_max(bits));
  }
  for (int eight = threadIdx.x; eight < 8 * depth; eight += blockDim.x) {
    get(eight, x);
    to[eight] = round_eight<T>(x, scaling.down);
  }
  return scaling.up;
}

// Makes the row; what undoes its scaling. whole: room for it in single precision, where it is normed.
template <class T> DEVICE float make_row(const Recipe &recipe, uint4 *to, float *whole, int depth) {
  const int k = recipe.k;
  const float *x = recipe.x, *y = recipe.y;
  if (recipe.making == ROUNDED)
    return round_whole<T>(to, depth, [&](int eight, float(&made)[8]) { load_eight(x, eight, k, made); });
  if (recipe.making == GATED_ROW)
    return round_whole<T>(to, depth, [&](int eight, float(&made)[8]) {
      float up[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
      load_eight(x, eight, k, made);
      if (y) load_eight(y, eight, k, up);
#pragma unroll
      for (int i = 0; i < 8; i++) made[i] = 8 * eight + i < k ? activated(recipe.activation, made[i]) * up[i] : 0.0f;
    });
  if (recipe.making == JOINED)
    return round_whole<T>(to, depth, [&](int eight, float(&made)[8]) {
      const int head = 8 * eight / recipe.d, channel = 8 * eight % recipe.d;
      const float *const parts = x + (size_t)head * recipe.apart;
#pragma unroll
      for (int i = 0; i < 8; i++) made[i] = 0.0f;
      if (8 * eight < k) join_parts<8, 1>(parts, recipe.count, recipe.d, channel, made);
    });
#pragma unroll 4
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    const float sum = recipe.making == SUM_NORMED ? x[i] + y[i] : x[i];
    whole[i] = sum;
    // One block keeps it.
    if (recipe.making == SUM_NORMED && blockIdx.x == 0) recipe.sum[i] = sum;
  }
  __syncthreads();
  const float scale = norm_scale(whole, k, recipe.eps);
  return round_whole<T>(to, depth, [&](int eight, float(&made)[8]) {
    float weight[8];
    load_eight(whole, eight, k, made);
    load_eight(recipe.weight, eight, k, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) made[i] = made[i] * scale * weight[i];
  });
}

template <class T>
DEVICE void dense_one(const Products &products, const Plan &plan, const Recipe &recipe, int depth) {
  __shared__ float sums[2][WARPS][16][8 + 1], up;
  uint4(*const ring)[PIECE] = (uint4(*)[PIECE])room + threadIdx.x / 32 * DENSE_RING;
  uint4 *const made = room + WARPS * DENSE_RING * PIECE;
  Feed feed(products, plan, depth);
#pragma unroll
  for (int i = 0; i + 1 < DENSE_RING; i++) feed.copy_piece(ring[i]);
  if (recipe.weight) prefetch_row(recipe.weight, recipe.k);
  begin();
  const float by = make_row<T>(recipe, made, (float *)(made + 8 * depth), depth);
  if (threadIdx.x == 0) up = by;
  __syncthreads();
  const Inputs inputs{made, 0, 0, 8, 4};
  dense_turns<T>(products, plan, feed, ring, sums, inputs, scales_rows(T()) ? &up : nullptr, 1, depth);
}

#define DENSE_ONE(name, T)                                                                                              \
  KERNEL(256, 2) name(GIVEN(Products) products, GIVEN(Plan) plan, GIVEN(Recipe) recipe, int depth) {                    \
    dense_one<T>(products, plan, recipe, depth);                                                                        \
  }

DENSE_ONE(dense_f16_1, __half)
DENSE_ONE(dense_bf16_1, __nv_bfloat16)
