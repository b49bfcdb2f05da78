// Root-mean-square normalisation: norm.rs.

#include "card/card.cuh"

// A row's squares are added up by sixteen threads, as the CPU's lanes do.
DEVICE void norm_row(const float *row, const float *weight, float *to, int width, float eps) {
  __shared__ float scale;
  if (threadIdx.x < LANES) {
    float squares = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x; i < width; i += LANES) squares = fmaf(row[i], row[i], squares);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
      squares = squares + __shfl_xor_sync((1u << LANES) - 1, squares, lanes);
    if (threadIdx.x == 0) scale = 1.0f / sqrtf(squares / (float)width + eps);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = row[i] * scale * weight[i];
}

// One block a row.
KERNEL(256) rms_norm(const float *x, const float *weight, float *out, int width, float eps) {
  begin();
  const size_t at = (size_t)blockIdx.x * width;
  norm_row(x + at, weight, out + at, width, eps);
}

// The same of x + y, which is kept as `sum`.
KERNEL(256) add_norm(const float *x, const float *y, const float *weight, float *sum, float *out, int width, float eps) {
  begin();
  const size_t at = (size_t)blockIdx.x * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum[at + i] = x[at + i] + y[at + i];
  __syncthreads();
  norm_row(sum + at, weight, out + at, width, eps);
}
