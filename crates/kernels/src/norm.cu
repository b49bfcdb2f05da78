// Root-mean-square normalisation: norm.rs.

#pragma once
#include "card/copy.cuh"
#include "forms.cuh"

constexpr int NORMERS = 256;

// What a row is multiplied with, in every thread of a block. Its squares are added up by sixteen threads, as the CPU's lanes
// do.
DEVICE float norm_scale(const float *row, int width, float eps) {
  __shared__ float scale;
  if (threadIdx.x < LANES) {
    float squares = 0.0f;
#pragma unroll 16
    for (int i = threadIdx.x; i < width; i += LANES) squares = fmaf(row[i], row[i], squares);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
      squares = squares + __shfl_xor_sync((1u << LANES) - 1, squares, lanes);
    if (threadIdx.x == 0) scale = 1.0f / sqrtf(squares / (float)width + eps);
  }
  __syncthreads();
  return scale;
}

// Weights wait for nobody.
DEVICE void prefetch_row(const float *weight, int width) {
  for (int i = threadIdx.x * 32; i < width; i += blockDim.x * 32) prefetch(weight + i);
}

// Hands over the norm of a row, which is in shared memory where `KEPT`.
template <bool KEPT> DEVICE void norm_row(const float *row, const float *weight, const Handed &handed, float eps) {
  const float scale = norm_scale(row, handed.k, eps);
  if (!KEPT) {
    handed.row(blockIdx.x, 0, 1 << 30, [&](int i) { return row[i] * scale * weight[i]; });
    return;
  }
  // In its place first, so that eight numbers of one thread are not eight words of one bank.
  float *const here = (float *)room;
  for (int i = threadIdx.x; i < handed.k; i += blockDim.x) here[i] = here[i] * scale * weight[i];
  __syncthreads();
  handed.row(blockIdx.x, 0, 1 << 30, [&](int i) { return here[i]; });
}

// One block a row. kept: whether a row has its place in shared memory; one that is too long is read from where it is.
KERNEL(NORMERS) rms_norm(const float *x, const float *weight, HANDED, int width, float eps, int kept) {
  prefetch_row(weight, width);
  begin();
  const Handed handed{to, scales, width, depth, form};
  const float *row = x + (size_t)blockIdx.x * width;
  if (!kept) return norm_row<false>(row, weight, handed, eps);
  float *const here = (float *)room;
#pragma unroll 8
  for (int i = threadIdx.x; i < width; i += blockDim.x) here[i] = row[i];
  __syncthreads();
  norm_row<true>(here, weight, handed, eps);
}

// The same of x + y, which is kept as `sum`.
KERNEL(NORMERS) add_norm(const float *x, const float *y, const float *weight, float *sum, HANDED, int width, float eps,
                         int kept) {
  prefetch_row(weight, width);
  begin();
  const Handed handed{to, scales, width, depth, form};
  const size_t at = (size_t)blockIdx.x * width;
  float *const here = (float *)room;
#pragma unroll 8
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float both = x[at + i] + y[at + i];
    if (kept) here[i] = both;
    sum[at + i] = both;
  }
  __syncthreads();
  if (kept)
    norm_row<true>(here, weight, handed, eps);
  else
    norm_row<false>(sum + at, weight, handed, eps);
}
