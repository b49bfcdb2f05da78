// The best score of a row, and what a softmax over it is made of: softmax.rs, the same bits.
//
// A row is cut into slices, a block each, so that many look a single row over: first for the best score of each slice, then
// for the weights relative to the best of all. A slice has whole stretches, whose sums the last block to come adds up in
// their order.

#include "look.cuh"

// Vectors of sixteen scores whose sums stay in single precision before they join the total, and scores of a stretch.
constexpr int STRETCH_VECTORS = 64;
constexpr int STRETCH_SCORES = STRETCH_VECTORS * LANES;
// Scores of a slice (judge.rs), and threads of its block.
constexpr int SLICE_STRETCHES = 2;
constexpr int SLICE = SLICE_STRETCHES * STRETCH_SCORES;
constexpr int SLICE_THREADS = 256;

// A score and whose it is.
struct Best {
  float score;
  unsigned token;
};

// What is known of a row: four words.
struct Judged {
  unsigned best;
  float score;
  double mass;
};

DEVICE void take_better(Best &best, const Best &other) {
  if (other.score > best.score || (other.score == best.score && other.token < best.token)) best = other;
}

// The best of all threads' bests, in every thread. Once a kernel.
DEVICE Best best_of_block(Best best) {
  __shared__ Best bests[SLICE_THREADS / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float score = __shfl_xor_sync(ALL, best.score, lanes);
    const unsigned token = __shfl_xor_sync(ALL, best.token, lanes);
    take_better(best, Best{score, token});
  }
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < SLICE_THREADS / 32; i++) take_better(best, bests[i]);
  return best;
}

// The look of a block: at each of the rows as it is, then those that were asked for.
DEVICE Look look_of(const Look *looks, int rows) {
  const int at = blockIdx.y;
  return at < rows ? Look{(unsigned)at, 1.0f, 1.0f, {0, 0, 0, 0}, 0} : looks[at - rows];
}

// One block a slice of a look at scores, [rows, n]; bests: [looks, slices].
KERNEL(256) highest(const float *scores, const Look *looks, const uint32_t *tokens, Best *bests, int rows, int n) {
  begin();
  __shared__ unsigned marks[SLICE / 32];
  const int first = blockIdx.x * SLICE, last = min(first + SLICE, n);
  const Scores row(scores, look_of(looks, rows), tokens, marks, first, last, n);
  Best best{MINUS_INFINITY, 0xffffffffu};
#pragma unroll
  for (int i = 0; i < SLICE; i += SLICE_THREADS) {
    const int token = first + i + threadIdx.x;
    const float score = token < last ? row(token) : MINUS_INFINITY;
    if (score > best.score) best = Best{score, (unsigned)token};
  }
  best = best_of_block(best);
  if (threadIdx.x == 0) bests[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// As highest, which has run. sums: [looks, stretches + 1], those of a row's last scores, which fill no vector, behind the
// others. met: a 0 a look.
KERNEL(256) mass(const float *scores, const Look *looks, const uint32_t *tokens, const Best *bests, double *sums, int *met,
                 Judged *judged, int rows, int n) {
  begin();
  __shared__ unsigned marks[SLICE / 32];
  __shared__ float weights[SLICE], lanes[SLICE_STRETCHES][LANES];
  __shared__ double totals[SLICE_THREADS];
  __shared__ bool is_last;
  const int at = threadIdx.x, vectors = n / LANES, stretches = (vectors + STRETCH_VECTORS - 1) / STRETCH_VECTORS;
  bests += blockIdx.y * gridDim.x;
  sums += blockIdx.y * (stretches + 1);
  Best best{MINUS_INFINITY, 0xffffffffu};
  for (int i = at; i < (int)gridDim.x; i += SLICE_THREADS) take_better(best, bests[i]);
  best = best_of_block(best);

  const int first = blockIdx.x * SLICE, last = min(first + SLICE, n);
  const Look look = look_of(looks, rows);
  const Scores row(scores, look, tokens, marks, first, last, n);
#pragma unroll
  for (int i = at; i < SLICE; i += SLICE_THREADS)
    if (first + i < last) weights[i] = exp_of((row(first + i) - best.score) * look.scale);
  __syncthreads();
  // Lane by lane as the CPU's, and then the lanes in their order.
  if (at < SLICE_STRETCHES * LANES) {
    const int stretch = at / LANES, whole = min(last - first, vectors * LANES - first);
    const int to = min((stretch + 1) * STRETCH_SCORES, whole);
    float sum = 0.0f;
    for (int i = stretch * STRETCH_SCORES + at % LANES; i < to; i += LANES) sum = sum + weights[i];
    lanes[stretch][at % LANES] = sum;
  }
  __syncthreads();
  const int own = blockIdx.x * SLICE_STRETCHES + at;
  if (at < SLICE_STRETCHES && own < stretches) {
    double across = 0.0;
    for (int i = 0; i < LANES; i++) across = across + (double)lanes[at][i];
    sums[own] = across;
  }
  if (at == SLICE_STRETCHES && last == n) {
    double across = 0.0;
    for (int i = vectors * LANES - first; i < n - first; i++) across = across + (double)weights[i];
    sums[stretches] = across;
  }
  // The last block to come adds up, when all others' sums can be seen.
  __threadfence();
  __syncthreads();
  if (at == 0) {
    is_last = atomicAdd(&met[blockIdx.y], 1) == (int)gridDim.x - 1;
    if (is_last) met[blockIdx.y] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  double total = 0.0;
  for (int from = 0; from <= stretches; from += SLICE_THREADS) {
    if (from + at <= stretches) totals[at] = __ldcg(sums + from + at);
    __syncthreads();
    if (at == 0)
      for (int i = 0; i < SLICE_THREADS && from + i <= stretches; i++) total = total + totals[i];
    __syncthreads();
  }
  // As the model gave it, so that its probability is known too; the look's penalty can be applied again.
  const float score = best.token < (unsigned)n ? scores[(size_t)look.row * n + best.token] : best.score;
  if (at == 0) judged[blockIdx.y] = Judged{best.token, score, total};
}

// The scores of single tokens. asked: row and token each.
KERNEL(256) ask(const float *scores, const uint32_t *asked, float *answers, int count, int n) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) answers[i] = scores[(size_t)asked[2 * i] * n + asked[2 * i + 1]];
}
