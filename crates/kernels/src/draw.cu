// The front of a row in order, as far as a draw looks: top.rs, the same order.

#include "look.cuh"

// Threads of a block that goes over a whole row.
constexpr int THREADS = 1024;

// The scores that a draw gets to see at once (judge.rs), in their order. They are handed over as the model gave them, so
// that their probabilities are known too.
constexpr int TOP = 256;
struct Entry {
  float score;
  unsigned token;
};
struct Drawn {
  unsigned count, padding[3];
  Entry top[TOP];
};

// Scores among which the top ones are put in order; where so many are alike that there are more, none is.
constexpr int FEW = 2048;

// One block a look.
//
// Every thread goes through scores of its own for the best one. Those bests are scores too, so all of the top ones are at
// least as high as the lowest of the TOP highest bests; which few of all are, and few can be put in order by counting for
// each how many come before it.
KERNEL(1024) draw(const float *scores, const Look *looks, const uint32_t *tokens, Drawn *drawn, int n) {
  begin();
  __shared__ unsigned marks[MARKED / 32];
  __shared__ Key few[FEW];
  __shared__ int found;
  const Look look = looks[blockIdx.x];
  drawn += blockIdx.x;

  float best = MINUS_INFINITY;
  each(scores, look, tokens, marks, n, [&](int, float score) { best = max_of(score, best); });
  if (threadIdx.x == 0) found = 0;
  // The highest bound that as many bests reach, bit by bit.
  unsigned bound = 0;
  for (unsigned bit = 1u << 31; bit > 0; bit /= 2)
    if (__syncthreads_count(rising(best) >= (bound | bit)) >= TOP) bound |= bit;
  each(scores, look, tokens, marks, n, [&](int token, float score) {
    if (!(score >= MINUS_INFINITY && rising(score) >= bound)) return;
    const int place = atomicAdd(&found, 1);
    if (place < FEW) few[place] = key_of(score, token);
  });
  __syncthreads();
  const int count = found <= FEW ? found : 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    int rank = 0;
    for (int j = 0; j < count; j++) rank += few[j] < few[i];
    const unsigned token = (unsigned)few[i];
    if (rank < TOP) drawn->top[rank] = Entry{scores[(size_t)look.row * n + token], token};
  }
  if (threadIdx.x == 0) {
    drawn->count = min(count, TOP);
    drawn->padding[0] = drawn->padding[1] = drawn->padding[2] = 0;
  }
}

// The sum of what the threads before have, for each thread of a block of THREADS.
DEVICE int sum_before(int own) {
  __shared__ int sums[THREADS / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = own;
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int other = __shfl_sync(ALL, sum, lane - lanes);
    if (lane >= lanes) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  for (int i = 0; i < warp; i++) sum += sums[i];
  return sum - own;
}

// What stands in front of the tokens that follow in the order: how many they are, and whether they are the last ones.
struct Further {
  unsigned count, is_all, padding[2];
};

// Behind what is no number there is nothing.
constexpr Key END = 0xff800001ull << 32;

// One block: what follows from a key on, in any order; most tokens, or all that there are.
//
// The keys are sorted into as many equal bins as there are threads, and where the tokens of one bin are too many, that bin
// is again. No two tokens have one key, so that however many are alike, it comes to an end.
KERNEL(1024) further(const float *scores, const Look *looks, const uint32_t *tokens, Key from, Further *found, int most,
                     int n) {
  begin();
  __shared__ unsigned marks[MARKED / 32];
  __shared__ int bins[THREADS], full, ahead, count;
  const Look look = looks[0];
  Entry *const next = (Entry *)(found + 1);
  Key first = from, last = max(END, from);
  bool is_all = false;
  for (int taken = 0; taken < most;) {
    int shift = 0;
    while ((last - first) >> shift >= (Key)THREADS) shift++;
    __syncthreads();
    bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) full = -1;
    __syncthreads();
    each(scores, look, tokens, marks, n, [&](int token, float score) {
      const Key key = key_of(score, token);
      if (score >= MINUS_INFINITY && key >= first && key < last) atomicAdd(&bins[(key - first) >> shift], 1);
    });
    __syncthreads();
    const int own = bins[threadIdx.x], before = taken + sum_before(own);
    if (before <= most && before + own > most) {
      full = threadIdx.x;
      ahead = before;
    }
    __syncthreads();
    is_all = full < 0;
    if (is_all) break;
    taken = ahead;
    first += (Key)full << shift;
    last = min(last, first + ((Key)1 << shift));
  }
  // What is before the bin that was too full; all, where none was.
  const Key limit = is_all ? last : first;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  each(scores, look, tokens, marks, n, [&](int token, float score) {
    const Key key = key_of(score, token);
    if (score >= MINUS_INFINITY && key >= from && key < limit)
      next[atomicAdd(&count, 1)] = Entry{scores[(size_t)look.row * n + token], (unsigned)token};
  });
  __syncthreads();
  if (threadIdx.x == 0) {
    found->count = count;
    found->is_all = is_all;
    found->padding[0] = found->padding[1] = 0;
  }
}
