// The product with dense weights: dense.rs.
//
// Weights of sixteen bits meet activations rounded to their type on tensor cores, with sums in single
// precision. A block's eight warps take every eighth stretch of 32 inputs and add up in their order:
// which inputs meet in which sum follows from k alone, so a row's bits do not depend on how many rows
// there are, nor on its place among them. In single precision a warp takes an output, and a lane
// every thirty-second input.

#include "card/mma.cuh"

constexpr int WARPS = 8;
// Inputs that a warp takes at a time, eight a lane.
constexpr int STRETCH = 32;

DEVICE unsigned short rounded(__half, float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE unsigned short rounded(__nv_bfloat16, float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// One block a row of x, [m, k]: its numbers in sixteen bits, [m, stride], zeros behind the last. A row too large for
// half precision is scaled by a power of two, which `scales`, [m], undoes.
template <class T> DEVICE void round_row(const float *x, unsigned short *to, float *scales, int k, int stride, bool scaled) {
  __shared__ int greatest[WARPS];
  const float *row = x + (size_t)blockIdx.x * k;
  int bits = 0;
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    const int magnitude = __float_as_int(row[i]) & 0x7fffffff;
    bits = magnitude > bits ? magnitude : bits;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const int other = __shfl_xor_sync(ALL, bits, lanes);
    bits = bits > other ? bits : other;
  }
  if (threadIdx.x % 32 == 0) greatest[threadIdx.x / 32] = bits;
  __syncthreads();
  for (int warp = 0; warp < WARPS; warp++) bits = greatest[warp] > bits ? greatest[warp] : bits;
  // 2^15 and above, and still a number.
  const int exponent = bits >> 23;
  const bool large = scaled && exponent >= 127 + 15 && exponent < 255;
  const float down = large ? __int_as_float((unsigned)(127 + 127 + 14 - exponent) << 23) : 1.0f;
  const float up = large ? __int_as_float((unsigned)(exponent - 14) << 23) : 1.0f;
  for (int i = threadIdx.x; i < stride; i += blockDim.x)
    to[(size_t)blockIdx.x * stride + i] = i < k ? rounded(T(), row[i] * down) : 0;
  if (threadIdx.x == 0) scales[blockIdx.x] = up;
}

KERNEL(256) round_f16(const float *x, unsigned short *to, float *scales, int k, int stride) {
  round_row<__half>(x, to, scales, k, stride, true);
}
KERNEL(256) round_bf16(const float *x, unsigned short *to, float *scales, int k, int stride) {
  round_row<__nv_bfloat16>(x, to, scales, k, stride, false);
}

// Sixteen rows times TALL, and eight outputs times WIDE, a block. x: [m, stride]; weights: [n, stride], to the next
// sixteen outputs.
template <class T, int TALL, int WIDE>
DEVICE void dense(const Products &products, const unsigned short *x, const float *scales, int m, int stride) {
  __shared__ float sums[TALL * 16][WIDE * 8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Product<unsigned short> product(products, blockIdx.y, WIDE * 8);
  const int first = blockIdx.x * TALL * 16, output = product.stretch * WIDE * 8;
  const int n = product.n, outputs = (n + 15) / 16 * 16;
  float c[TALL][WIDE][4] = {};
#pragma unroll(TALL == 1 ? 4 : 2)
  for (int at = warp * STRETCH; at < stride; at += WARPS * STRETCH) {
    uint4 b[WIDE];
#pragma unroll
    for (int wide = 0; wide < WIDE; wide++) {
      const int row = output + wide * 8 + g;
      b[wide] = row < outputs ? *(const uint4 *)(product.weight + (size_t)row * stride + at + 8 * t) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int tall = 0; tall < TALL; tall++) {
      uint4 a[2];
#pragma unroll
      for (int low = 0; low < 2; low++) {
        const int row = first + tall * 16 + low * 8 + g;
        a[low] = row < m ? *(const uint4 *)(x + (size_t)row * stride + at + 8 * t) : uint4{0, 0, 0, 0};
      }
      // Which input is which is free, as long as both sides agree: a lane's eight stand in a row in memory.
      const unsigned a0[4] = {a[0].x, a[1].x, a[0].y, a[1].y}, a1[4] = {a[0].z, a[1].z, a[0].w, a[1].w};
#pragma unroll
      for (int wide = 0; wide < WIDE; wide++) {
        const unsigned b0[2] = {b[wide].x, b[wide].y}, b1[2] = {b[wide].z, b[wide].w};
        mma(T(), c[tall][wide], a0, b0);
        mma(T(), c[tall][wide], a1, b1);
      }
    }
  }
  for (int next = 0; next < WARPS; next++) {
    if (warp == next)
#pragma unroll
      for (int tall = 0; tall < TALL; tall++)
#pragma unroll
        for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float &sum = sums[tall * 16 + i / 2 * 8 + g][wide * 8 + 2 * t + i % 2];
            sum = next == 0 ? c[tall][wide][i] : sum + c[tall][wide][i];
          }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < TALL * 16 * WIDE * 8; i += blockDim.x) {
    const int row = i / (WIDE * 8), column = i % (WIDE * 8);
    if (first + row >= m || output + column >= n) continue;
    product.out[(size_t)(first + row) * n + output + column] = sums[row][column] * scales[first + row];
  }
}

#define DENSE(name, T, TALL, WIDE)                                                                                      \
  KERNEL(256) name(Products products, const unsigned short *x, const float *scales, int m, int stride) {               \
    dense<T, TALL, WIDE>(products, x, scales, m, stride);                                                               \
  }

DENSE(dense_f16_1, __half, 1, 2)
DENSE(dense_f16_2, __half, 2, 4)
DENSE(dense_f16_4, __half, 4, 4)
DENSE(dense_bf16_1, __nv_bfloat16, 1, 2)
DENSE(dense_bf16_2, __nv_bfloat16, 2, 4)
DENSE(dense_bf16_4, __nv_bfloat16, 4, 4)

// A warp an output, for up to ROWS rows. Weights: [n, k].
template <int ROWS> DEVICE void dense_single(const Products &products, const float *x, int m, int k) {
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

KERNEL(256) dense_f32_1(Products products, const float *x, int m, int k) { dense_single<1>(products, x, m, k); }
KERNEL(256) dense_f32_8(Products products, const float *x, int m, int k) { dense_single<8>(products, x, m, k); }
