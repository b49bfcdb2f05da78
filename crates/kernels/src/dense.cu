// The product with dense weights: dense.rs.
//
// Weights of sixteen bits meet activations rounded to their type on tensor cores, with sums in single
// precision. Inputs are cut into eight chains; a chain adds up in the order of its inputs, and the chains are added in
// theirs. Which inputs meet in which sum follows from k alone, so a row's bits do not depend on how many rows there are,
// nor on its place among them. In single precision a warp takes an output, and a lane every thirty-second input.
//
// Up to sixteen rows: a block takes sixteen outputs, its warps a chain each, straight from memory.
//
// More rows: a block takes 32, 64 or 128 rows and 128 outputs, and copies both through shared memory, where every warp
// finds a half of the rows and a quarter of the outputs. Blocks have equal shares of all chains of all outputs, one
// block a processor. A block that has all chains of its outputs writes them; where it has some, it hands its sums over, and
// the last one to come adds up what all have handed over.
//
// By hand, a block and step, at 128 rows and two bytes a number: 16 KiB of weights come from memory, for which a processor
// has 1100 to 1200 cycles at 14 bytes a cycle (2 TB/s over 108 processors, 3.35 over 132), and as much of the activations
// from the second-level cache. 512 multiplications of 16 × 8 × 16 take 1024 cycles where a processor does 1024
// multiply-adds a cycle, and 800 or fewer on later ones; for them warps read 96 KiB of shared memory, 768 cycles at 128
// bytes. At 64 rows it is 12, 256 and 64, half the time of the memory. Registers leave room for one block of 128 rows
// (205), two of 64 (126) and of 32 (95) or of sixteen (96); 64 to 72 KiB are under way while a step is used, of
// which 32 to 48 are weights. Latency times bandwidth asks for some 20.

#include "card/copy.cuh"
#include "card/mma.cuh"

constexpr int WARPS = 8;
constexpr int CHAINS = 8;
// Inputs that a warp takes at a time, eight a lane, and those that are copied at a time: chains have whole steps.
constexpr int STRETCH = 32, STEP = 64;

DEVICE int chain_length(int stride) { return ((stride + STEP - 1) / STEP + CHAINS - 1) / CHAINS * STEP; }

// What two lanes' inputs and four of another add to the sums of sixteen rows and eight outputs. Which input is which is
// free, as long as both sides agree: a lane's eight stand in a row in memory. a: of rows g and g + 8.
template <class T> DEVICE void multiply(float (&c)[4], const uint4 (&a)[2], const uint4 &b) {
  mma(T(), c, {a[0].x, a[1].x, a[0].y, a[1].y}, {b.x, b.y});
  mma(T(), c, {a[0].z, a[1].z, a[0].w, a[1].w}, {b.z, b.w});
}

DEVICE unsigned short rounded(__half, float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE unsigned short rounded(__nv_bfloat16, float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// One block a row of x, [m, k]: its numbers in sixteen bits, [m, stride], zeros behind the last. A row too large for
// half precision is scaled by a power of two, which `scales`, [m], undoes.
template <class T> DEVICE void round_row(const float *x, unsigned short *to, float *scales, int k, int stride, bool scaled) {
  begin();
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

// Up to sixteen rows and sixteen outputs a block. x: [m, stride]; weights: [n, stride], to the next sixteen outputs.
template <class T>
DEVICE void dense_few(const Products &products, const unsigned short *x, const float *scales, int m, int stride) {
  begin();
  constexpr int WIDE = 2, DEEP = 4;
  __shared__ float sums[CHAINS][16][WIDE * 8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Product<unsigned short> product(products, blockIdx.x, WIDE * 8);
  const int n = product.n, output = product.stretch * WIDE * 8, chain = chain_length(stride);
  float c[WIDE][4] = {};
  const int end = min(warp * chain + chain, stride);
  for (int start = warp * chain; start < end; start += DEEP * STRETCH) {
    // All is asked for before any is used.
    uint4 a[DEEP][2], b[DEEP][WIDE];
#pragma unroll
    for (int deep = 0; deep < DEEP; deep++) {
      const int at = start + deep * STRETCH + 8 * t;
      if (at >= end) break;
#pragma unroll
      for (int wide = 0; wide < WIDE; wide++)
        b[deep][wide] = *(const uint4 *)(product.weight + (size_t)(output + wide * 8 + g) * stride + at);
#pragma unroll
      for (int low = 0; low < 2; low++) {
        const int row = low * 8 + g;
        a[deep][low] = row < m ? *(const uint4 *)(x + (size_t)row * stride + at) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int deep = 0; deep < DEEP; deep++) {
      if (start + deep * STRETCH >= end) break;
#pragma unroll
      for (int wide = 0; wide < WIDE; wide++) multiply<T>(c[wide], a[deep], b[deep][wide]);
    }
  }
#pragma unroll
  for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][i / 2 * 8 + g][wide * 8 + 2 * t + i % 2] = c[wide][i];
  __syncthreads();
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  if (row >= m || output + column >= n) return;
  float sum = sums[0][row][column];
#pragma unroll
  for (int next = 1; next < CHAINS; next++) sum = sum + sums[next][row][column];
  product.out[(size_t)row * n + output + column] = sum * scales[row];
}

// The chains of all products: outputs outermost, then rows, then chains.
struct Chains {
  int rows, outputs, blocks;

  // How many there are.
  DEVICE_METHOD int count() const { return outputs * rows * CHAINS; }
  // The first one of a block, and the block that has one.
  DEVICE_METHOD int first(int block) const { return (int)((long long)count() * block / blocks); }
  DEVICE_METHOD int block_of(int chain) const { return (int)((((long long)chain + 1) * blocks - 1) / count()); }
};

// Rows that a block takes times 32, and the stages of its copies: as many as 99 KiB hold.
template <int TALL> struct Stages {
  static constexpr int ROWS = 32 * TALL, OUTPUTS = 128, WIDE = 4, COUNT = TALL == 4 ? 3 : 4;
  // Rows of 64 inputs, in eights: those of odd rows are swapped by halves, so that two rows are read at once.
  uint4 x[COUNT][ROWS][STEP / 8];
  uint4 weights[COUNT][OUTPUTS][STEP / 8];

  DEVICE_METHOD static int place(int row, int eight) { return eight ^ (row & 1) << 2; }
};

// A place on a block's way through its chains.
template <int TALL> struct Way {
  using In = Stages<TALL>;
  const Products &products;
  const Chains &chains;
  int chain, last, stride, at, end;

  DEVICE_METHOD Way(const Products &products, const Chains &chains, int stride)
      : products(products), chains(chains), chain(chains.first(blockIdx.x)), last(chains.first(blockIdx.x + 1)),
        stride(stride) {
    begin();
  }
  DEVICE_METHOD void begin() {
    const int length = chain_length(stride);
    at = chain % CHAINS * length;
    end = min(at + length, stride);
  }
  DEVICE_METHOD bool is_done() const { return chain >= last; }
  DEVICE_METHOD int first_row() const { return chain / CHAINS % chains.rows * In::ROWS; }
  DEVICE_METHOD Product<unsigned short> product() const {
    return Product<unsigned short>(products, chain / CHAINS / chains.rows, In::OUTPUTS);
  }
  DEVICE_METHOD void next_chain() {
    chain++;
    begin();
  }
  // To the next step with inputs, of whatever chain.
  DEVICE_METHOD void skip_empty() {
    while (!is_done() && at >= end) next_chain();
  }
};

// x: [m, stride]; weights: [n, stride], to the next sixteen outputs; handed: what blocks hand over, [blocks, slots,
// sums]; met: for each block of outputs and rows how many have come, 0 before and after.
template <class T, int TALL>
DEVICE void dense_many(const Products &products, const unsigned short *x, const float *scales, int m, int stride,
                       int rows, int outputs, int slots, float *handed, int *met) {
  begin();
  using In = Stages<TALL>;
  constexpr int SUMS = TALL * In::WIDE * 4;
  In &in = *(In *)room;
  const Chains chains{rows, outputs, (int)gridDim.x};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int my_rows = warp / 4 * 16 * TALL, my_outputs = warp % 4 * 8 * In::WIDE;

  Way<TALL> ahead(products, chains, stride);
  ahead.skip_empty();
  const auto fetch = [&](int stage) {
    if (!ahead.is_done()) {
      const auto product = ahead.product();
      const int first = ahead.first_row(), output = product.stretch * In::OUTPUTS;
      const int n = (product.n + 15) / 16 * 16;
      for (int i = threadIdx.x; i < In::ROWS * 8; i += 256) {
        const int row = i / 8, at = ahead.at + i % 8 * 8;
        const bool is_there = first + row < m && at < ahead.end;
        copy(&in.x[stage][row][In::place(row, i % 8)], x + (is_there ? (size_t)(first + row) * stride + at : 0),
             is_there);
      }
      for (int i = threadIdx.x; i < In::OUTPUTS * 8; i += 256) {
        const int row = i / 8, at = ahead.at + i % 8 * 8;
        const bool is_there = output + row < n && at < ahead.end;
        copy(&in.weights[stage][row][In::place(row, i % 8)],
             product.weight + (is_there ? (size_t)(output + row) * stride + at : 0), is_there);
      }
      ahead.at += STEP;
      ahead.skip_empty();
    }
    end_copies();
  };
  for (int stage = 0; stage + 1 < In::COUNT; stage++) fetch(stage);

  // Where this block's sums are handed over: those of its last outputs' first chains in slot 0, others' in those behind.
  const auto slot = [&](int block, int which) {
    return handed + ((size_t)block * slots + which) * SUMS * 256 + threadIdx.x;
  };
  float totals[TALL][In::WIDE][4];
  int stage = 0;
  for (Way<TALL> way(products, chains, stride); !way.is_done(); way.next_chain()) {
    float sums[TALL][In::WIDE][4] = {};
    for (; way.at < way.end; way.at += STEP) {
      await_copies<In::COUNT - 2>();
      __syncthreads();
      // Nobody reads the stage before this one any more.
      fetch((stage + In::COUNT - 1) % In::COUNT);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (way.at + half * STRETCH >= way.end) break;
        uint4 b[In::WIDE];
#pragma unroll
        for (int wide = 0; wide < In::WIDE; wide++) {
          const int row = my_outputs + wide * 8 + g;
          b[wide] = in.weights[stage][row][In::place(row, 4 * half + t)];
        }
#pragma unroll
        for (int tall = 0; tall < TALL; tall++) {
          uint4 a[2];
#pragma unroll
          for (int low = 0; low < 2; low++) {
            const int row = my_rows + tall * 16 + low * 8 + g;
            a[low] = in.x[stage][row][In::place(row, 4 * half + t)];
          }
#pragma unroll
          for (int wide = 0; wide < In::WIDE; wide++) multiply<T>(sums[tall][wide], a, b[wide]);
        }
      }
      stage = (stage + 1) % In::COUNT;
    }
    const int at = way.chain % CHAINS, own = way.chain - chains.first(blockIdx.x);
    // Chains before this one are another block's.
    const bool is_behind = own < at;
    float *const to = slot(blockIdx.x, 1 + own);
#pragma unroll
    for (int tall = 0; tall < TALL; tall++)
#pragma unroll
      for (int wide = 0; wide < In::WIDE; wide++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float &total = totals[tall][wide][i];
          total = at == 0 ? sums[tall][wide][i] : total + sums[tall][wide][i];
          if (is_behind) to[((tall * In::WIDE + wide) * 4 + i) * 256] = sums[tall][wide][i];
        }
    if (at < CHAINS - 1 && way.chain + 1 < way.last) continue;
    if (is_behind || at < CHAINS - 1) {
      if (!is_behind) {
        float *const to = slot(blockIdx.x, 0);
#pragma unroll
        for (int i = 0; i < SUMS; i++) to[i * 256] = totals[i / 4 / In::WIDE][i / 4 % In::WIDE][i % 4];
      }
      // The last block to come adds up, when all others' sums can be seen.
      const int chain = way.chain - at, owner = chains.block_of(chain);
      const int blocks = chains.block_of(chain + CHAINS - 1) - owner + 1;
      __threadfence();
      __syncthreads();
      __shared__ bool is_last;
      if (threadIdx.x == 0) {
        is_last = atomicAdd(&met[chain / CHAINS], 1) == blocks - 1;
        if (is_last) met[chain / CHAINS] = 0;
      }
      __syncthreads();
      if (!is_last) continue;
      __threadfence();
      for (int next = 0; next < CHAINS; next++) {
        const int block = chains.block_of(chain + next), first = chains.first(block);
        if (next > 0 && first <= chain) continue;
        const float *const from = slot(block, next == 0 ? 0 : 1 + chain + next - first);
#pragma unroll
        for (int i = 0; i < SUMS; i++) {
          float &total = totals[i / 4 / In::WIDE][i / 4 % In::WIDE][i % 4];
          total = next == 0 ? __ldcg(from + i * 256) : total + __ldcg(from + i * 256);
        }
      }
    }
    const auto product = way.product();
    const int first = way.first_row() + my_rows, output = product.stretch * In::OUTPUTS + my_outputs;
#pragma unroll
    for (int tall = 0; tall < TALL; tall++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = first + tall * 16 + i / 2 * 8 + g;
        if (row >= m) continue;
        const float scale = scales[row];
#pragma unroll
        for (int wide = 0; wide < In::WIDE; wide++) {
          const int column = output + wide * 8 + 2 * t + i % 2;
          if (column < product.n) product.out[(size_t)row * product.n + column] = totals[tall][wide][i] * scale;
        }
      }
  }
}

#define DENSE_FEW(name, T)                                                                                              \
  KERNEL(256) name(Products products, const unsigned short *x, const float *scales, int m, int stride) {                \
    dense_few<T>(products, x, scales, m, stride);                                                                       \
  }
#define DENSE_MANY(name, T, TALL)                                                                                       \
  KERNEL(256) name(Products products, const unsigned short *x, const float *scales, int m, int stride, int rows,        \
                   int outputs, int slots, float *handed, int *met) {                                                   \
    dense_many<T, TALL>(products, x, scales, m, stride, rows, outputs, slots, handed, met);                             \
  }

DENSE_FEW(dense_f16_16, __half)
DENSE_FEW(dense_bf16_16, __nv_bfloat16)
DENSE_MANY(dense_f16_32, __half, 1)
DENSE_MANY(dense_f16_64, __half, 2)
DENSE_MANY(dense_f16_128, __half, 4)
DENSE_MANY(dense_bf16_32, __nv_bfloat16, 1)
DENSE_MANY(dense_bf16_64, __nv_bfloat16, 2)
DENSE_MANY(dense_bf16_128, __nv_bfloat16, 4)

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

KERNEL(256) dense_f32_1(Products products, const float *x, int m, int k) { dense_single<1>(products, x, m, k); }
KERNEL(256) dense_f32_8(Products products, const float *x, int m, int k) { dense_single<8>(products, x, m, k); }
