// A look at a row of scores: as it is, or as a draw with a repetition penalty sees it.

#pragma once
#include "exp.cuh"

// Words of a step's upload (judge.rs). Which tokens stand in the text already is said by places in a list of tokens: those
// of the text itself from lists[0] to lists[1], and the draft's from lists[2] to lists[3].
struct Look {
  unsigned row;
  // What scores are multiplied by before they are weighed.
  float scale;
  // 1 changes nothing.
  float penalty;
  unsigned lists[4], padding;
};

// The order of a row's tokens as one number, the lower the earlier: the highest score, then the lowest token (top.rs).
using Key = unsigned long long;
DEVICE unsigned rising(float score) {
  // Both zeros are one score.
  const unsigned bits = (unsigned)__float_as_int(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE Key key_of(float score, int token) { return (Key)~rising(score) << 32 | (unsigned)token; }

// A row's scores of some tokens as a look sees them, for a whole block.
struct Scores {
  const float *scores;
  // A bit for each token from the first on, in shared memory: whether it is penalised, once, however often it is named.
  unsigned *marks;
  float penalty;
  int first;

  // Whoever has marked others before is done with them.
  DEVICE_METHOD Scores(const float *all, const Look &look, const uint32_t *tokens, unsigned *marks, int first,
                       int last, int n)
      : scores(all + (size_t)look.row * n), marks(marks), penalty(look.penalty), first(first) {
    if (penalty == 1.0f) return;
    __syncthreads();
    for (int i = threadIdx.x; i < (last - first + 31) / 32; i += blockDim.x) marks[i] = 0;
    __syncthreads();
    for (int list = 0; list < 4; list += 2)
      for (unsigned i = look.lists[list] + threadIdx.x; i < look.lists[list + 1]; i += blockDim.x) {
        const unsigned place = tokens[i] - (unsigned)first;
        if (place < (unsigned)(last - first)) atomicOr(&marks[place / 32], 1u << place % 32);
      }
    __syncthreads();
  }

  DEVICE_METHOD float operator()(int token) const {
    const float score = scores[token];
    const unsigned place = token - first;
    if (penalty == 1.0f || !(marks[place / 32] >> place % 32 & 1)) return score;
    return score > 0.0f ? score / penalty : score * penalty;
  }
};

// Tokens whose marks a block has at once.
constexpr int MARKED = 65536;

// Shows a block all scores of a row, each to the thread that is its token's rest.
template <class See>
DEVICE void each(const float *scores, const Look &look, const uint32_t *tokens, unsigned *marks, int n, See see) {
  for (int first = 0; first < n; first += MARKED) {
    const int last = min(first + MARKED, n);
    const Scores row(scores, look, tokens, marks, first, last, n);
    for (int token = first + threadIdx.x; token < last; token += blockDim.x) see(token, row(token));
  }
}
