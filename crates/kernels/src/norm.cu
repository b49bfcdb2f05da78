// Root-mean-square normalisation: norm.rs.

#include "card/copy.cuh"
#include "forms.cuh"

constexpr int NORMERS = 256;

// A row's squares are added up by sixteen threads, as the CPU's lanes do.
DEVICE void norm_row(const float *row, const float *weight, const Handed &handed, float eps) {
  __shared__ float scale;
  const int width = handed.k;
  if (threadIdx.x < LANES) {
    float squares = 0.0f;
#pragma unroll 16
    for (int i = threadIdx.x; i < width; i += LANES) squares = fmaf(row[i], row[i], squares);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
      squares = squares + __shfl_xor_sync((1u << LANES) - 1, squares, lanes);
    if (threadIdx.x == 0) scale = 1.0f / sqrtf(squares / (float)width + eps);
  }
  __syncthreads();
  const float by = scale;
  handed.row(blockIdx.x, 0, 1 << 30, [&](int i) { return row[i] * by * weight[i]; });
}

// One block a row. kept: whether a row has its place in shared memory; one that is too long is read from where it is.
KERNEL(NORMERS) rms_norm(const float *x, const float *weight, HANDED, int width, float eps, int kept) {
  begin();
  const float *row = x + (size_t)blockIdx.x * width;
  if (kept) {
    float *const here = (float *)room;
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += blockDim.x) here[i] = row[i];
    __syncthreads();
    row = here;
  }
  norm_row(row, weight, Handed{to, scales, width, depth, form}, eps);
}

// The same of x + y, which is kept as `sum`.
KERNEL(NORMERS) add_norm(const float *x, const float *y, const float *weight, float *sum, HANDED, int width, float eps,
                         int kept) {
  begin();
  const size_t at = (size_t)blockIdx.x * width;
  float *const row = kept ? (float *)room : sum + at;
#pragma unroll 4
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float both = x[at + i] + y[at + i];
    row[i] = both;
    if (kept) sum[at + i] = both;
  }
  __syncthreads();
  norm_row(row, weight, Handed{to, scales, width, depth, form}, eps);
}
