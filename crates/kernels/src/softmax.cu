// The best score of a row, and what a softmax over it is made of: softmax.rs, the same bits.

#include "exp.cuh"

// Vectors of sixteen scores whose sums stay in single precision before they join the total.
constexpr int STRETCH_VECTORS = 64;
constexpr int STRETCHES = 64;
constexpr int THREADS = STRETCHES * LANES;

// What is known of a row: four words.
struct Judged {
  unsigned best;
  float highest;
  double mass;
};

// One block of 1024 threads a row of scores, [rows, n].
KERNEL(1024) judge(const float *scores, Judged *judged, int n) {
  __shared__ float highs[THREADS / 32];
  __shared__ unsigned bests[THREADS / 32];
  __shared__ float sums[STRETCHES][LANES];
  __shared__ double totals[STRETCHES];
  scores += (size_t)blockIdx.x * n;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  // The highest, and where it first stands.
  float high = MINUS_INFINITY;
  unsigned best = 0xffffffffu;
  for (int i = threadIdx.x; i < n; i += THREADS) {
    const float score = scores[i];
    if (score > high) {
      high = score;
      best = i;
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float other = __shfl_xor_sync(ALL, high, lanes);
    const unsigned where = __shfl_xor_sync(ALL, best, lanes);
    if (other > high || (other == high && where < best)) {
      high = other;
      best = where;
    }
  }
  if (lane == 0) {
    highs[warp] = high;
    bests[warp] = best;
  }
  __syncthreads();
  high = MINUS_INFINITY;
  best = 0xffffffffu;
  for (int i = 0; i < THREADS / 32; i++)
    if (highs[i] > high || (highs[i] == high && bests[i] < best)) {
      high = highs[i];
      best = bests[i];
    }

  // Sums lane by lane as the CPU's, sixty-four stretches at a time.
  const int vectors = n / LANES, at = threadIdx.x % LANES, place = threadIdx.x / LANES;
  double total = 0.0;
  for (int first = 0; first < vectors; first += STRETCHES * STRETCH_VECTORS) {
    const int from = first + place * STRETCH_VECTORS;
    const int to = min(from + STRETCH_VECTORS, vectors);
    float sum = 0.0f;
    for (int vector = from; vector < to; vector++) sum = sum + exp_of(scores[vector * LANES + at] - high);
    sums[place][at] = sum;
    __syncthreads();
    if (threadIdx.x < STRETCHES) {
      double across = 0.0;
      for (int i = 0; i < LANES; i++) across = across + (double)sums[threadIdx.x][i];
      totals[threadIdx.x] = across;
    }
    __syncthreads();
    if (threadIdx.x == 0)
      for (int i = 0; i < STRETCHES && first + i * STRETCH_VECTORS < vectors; i++) total = total + totals[i];
  }
  if (threadIdx.x == 0) {
    double across = 0.0;
    for (int i = vectors * LANES; i < n; i++) across = across + (double)exp_of(scores[i] - high);
    judged[blockIdx.x] = Judged{best, high, total + across};
  }
}

// The scores of single tokens. asked: row and token each.
KERNEL(256) ask(const float *scores, const uint32_t *asked, float *answers, int count, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) answers[i] = scores[(size_t)asked[2 * i] * n + asked[2 * i + 1]];
}
