// Root-mean-square normalisation: norm.rs.

#include "card/card.cuh"

// One block a row, whose squares sixteen threads add up as the CPU's lanes do.
KERNEL(256) rms_norm(const float *x, const float *weight, float *out, int width, float eps) {
  __shared__ float scale;
  const float *row = x + (size_t)blockIdx.x * width;
  if (threadIdx.x < LANES) {
    float squares = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x; i < width; i += LANES) squares = fmaf(row[i], row[i], squares);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
      squares = squares + __shfl_xor_sync((1u << LANES) - 1, squares, lanes);
    if (threadIdx.x == 0) scale = 1.0f / sqrtf(squares / (float)width + eps);
  }
  __syncthreads();
  float *to = out + (size_t)blockIdx.x * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = row[i] * scale * weight[i];
}
