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

// The scores that a draw gets to see, in their order, and the sum of all weights.
constexpr int TOP = 256;
struct Drawn {
  double mass;
  unsigned count, padding;
  struct {
    float score;
    unsigned token;
  } top[TOP];
};

// The sum of all weights of a row, in every thread: lane by lane as the CPU's, sixty-four stretches at a time.
DEVICE double mass_of(const float *scores, int n, float high, float scale) {
  __shared__ float sums[STRETCHES][LANES];
  __shared__ double totals[STRETCHES], sum_of_all;
  const int vectors = n / LANES, at = threadIdx.x % LANES, place = threadIdx.x / LANES;
  const auto weight = [&](int i) { return exp_of((scores[i] - high) * scale); };
  double total = 0.0;
  for (int first = 0; first < vectors; first += STRETCHES * STRETCH_VECTORS) {
    const int from = first + place * STRETCH_VECTORS;
    const int to = min(from + STRETCH_VECTORS, vectors);
    float sum = 0.0f;
    for (int vector = from; vector < to; vector++) sum = sum + weight(vector * LANES + at);
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
    for (int i = vectors * LANES; i < n; i++) across = across + (double)weight(i);
    sum_of_all = total + across;
  }
  __syncthreads();
  return sum_of_all;
}

// One block of 1024 threads a row of scores, [rows, n].
KERNEL(1024) judge(const float *scores, Judged *judged, int n) {
  begin();
  __shared__ float highs[THREADS / 32];
  __shared__ unsigned bests[THREADS / 32];
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
  const double mass = mass_of(scores, n, high, 1.0f);
  if (threadIdx.x == 0) judged[blockIdx.x] = Judged{best, high, mass};
}

// Scores among which the top ones are put in order; where so many are alike that there are more, none is.
constexpr int FEW = 2048;

// One block of 1024 threads a row to draw from. rows: row, and the bits of what its scores are multiplied by, each.
//
// Every thread looks through a part of its own for its best score. Those bests are scores too, so all of the top ones are
// at least as high as the best one that has TOP of them above it; which few of all are, and few can be put in order by
// counting for each how many come before it.
KERNEL(1024) draw(const float *scores, const Judged *judged, const uint32_t *rows, Drawn *drawn, int n) {
  begin();
  __shared__ float bests[THREADS], few[FEW];
  __shared__ int places[FEW], found;
  __shared__ float least;
  const uint32_t row = rows[2 * blockIdx.x];
  scores += (size_t)row * n;
  drawn += blockIdx.x;

  float best = MINUS_INFINITY;
  for (int i = threadIdx.x; i < n; i += THREADS) best = max_of(scores[i], best);
  bests[threadIdx.x] = best;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  int before = 0;
  for (int i = 0; i < THREADS; i++) before += bests[i] > best || (bests[i] == best && i < (int)threadIdx.x);
  if (before == TOP) least = best;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += THREADS) {
    if (!(scores[i] >= least)) continue;
    const int place = atomicAdd(&found, 1);
    if (place < FEW) {
      few[place] = scores[i];
      places[place] = i;
    }
  }
  __syncthreads();
  const int count = found <= FEW ? found : 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    int rank = 0;
    for (int j = 0; j < count; j++) rank += few[j] > few[i] || (few[j] == few[i] && places[j] < places[i]);
    if (rank < TOP) {
      drawn->top[rank].score = few[i];
      drawn->top[rank].token = places[i];
    }
  }
  const double mass = mass_of(scores, n, judged[row].highest, __int_as_float((int)rows[2 * blockIdx.x + 1]));
  if (threadIdx.x == 0) {
    drawn->mass = mass;
    drawn->count = min(count, TOP);
    drawn->padding = 0;
  }
}

// The scores of single tokens. asked: row and token each.
KERNEL(256) ask(const float *scores, const uint32_t *asked, float *answers, int count, int n) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) answers[i] = scores[(size_t)asked[2 * i] * n + asked[2 * i + 1]];
}
