// Attention over a branch's committed prefix and a row's ancestors: attend.rs.
//
// A warp takes one row and up to four query heads of one key head; the warps of a block are neighbours, which walk the
// same pages at the same time. The sight is an array of words: for each row where its page table begins in it, its
// committed positions, where its path begins, and its own position.

#pragma once
#include "tile.cuh"

template <class T> DEVICE float kept(float x) {
  T stored;
  narrow(x, stored);
  return wide(stored);
}

// q: [m, heads, d]; staged_k, staged_v: [m, kv_heads, d]; pages: [pages, kv_heads, ..]; window: 0 for none;
// bias: [heads, distances], or none; partial: [m, heads, parts, 2 + d].
template <class T, int CHANNELS>
DEVICE void attend(const float *q, const float *staged_k, const float *staged_v, const T *pages_k, const T *pages_v,
                   const uint32_t *sight, const float *bias, float *out, float *partial, int m, int heads, int kv_heads,
                   int d, float scale, int window, int distances, int parts) {
  __shared__ Desk<CHANNELS> desks[WALKERS];
  const int group = heads / kv_heads, chunks = (group + QUERIES - 1) / QUERIES;
  const int item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = item / chunks, kv_head = blockIdx.y, part = blockIdx.z;
  if (row >= m) return;
  const int first_head = kv_head * group + item % chunks * QUERIES;
  const int left = (kv_head + 1) * group - first_head, count = left < QUERIES ? left : QUERIES;
  const uint32_t *pages = sight + sight[4 * row], *path = sight + sight[4 * row + 2];
  const int committed = sight[4 * row + 1], position = sight[4 * row + 3];
  const int lowest = window > 0 && position + 1 > window ? position + 1 - window : 0;

  Desk<CHANNELS> &desk = desks[threadIdx.x / 32];
#pragma unroll
  for (int h = 0; h < QUERIES; h++)
    for (int i = lane; i < CHANNELS * 32; i += 32)
      desk.q[i][h] = h < count && i < d ? q[((size_t)row * heads + first_head + h) * d + i] : 0.0f;
  __syncwarp();
  Seen<CHANNELS> seen;
  seen.clear();
  const auto bias_of = [&](int h) {
    return Bias{bias ? bias + (size_t)(first_head + h) * distances : nullptr, distances, position, -1};
  };

  const int end = min(part * PART + PART, position / PAGE + 1);
  for (int tile = max(part * PART, lowest / PAGE); tile < end; tile++) {
    const int start = tile * PAGE;
    const int from = max(lowest - start, 0), to = min(position + 1 - start, PAGE);
    // Pages that are not there hold nothing that a row sees.
    const bool paged = start < committed;
    const size_t at = paged ? ((size_t)pages[tile] * kv_heads + kv_head) * d * PAGE : 0;
    const T *page_k = pages_k + at, *page_v = pages_v + at;
    if (start + PAGE <= committed) {
      see(
          desk, seen, count, d, scale, start, from, to, [&](int i) { return wide(page_k[i * PAGE + lane]); },
          [&](int slot, int i) { return wide(page_v[slot * d + i]); }, bias_of);
      continue;
    }
    const auto staged_at = [&](int slot) { return ((size_t)path[start + slot - committed] * kv_heads + kv_head) * d; };
    const bool is_committed = start + lane < committed, is_staged = !is_committed && lane < to;
    const float *staged_key = is_staged ? staged_k + staged_at(lane) : nullptr;
    see(
        desk, seen, count, d, scale, start, from, to,
        [&](int i) {
          return is_committed ? wide(page_k[i * PAGE + lane]) : is_staged ? kept<T>(staged_key[i]) : 0.0f;
        },
        [&](int slot, int i) {
          return start + slot < committed ? wide(page_v[slot * d + i]) : kept<T>(staged_v[staged_at(slot) + i]);
        },
        bias_of);
  }
  for (int h = 0; h < count; h++)
    finish(seen, h, d, (size_t)row * heads + first_head + h, part, parts, out, partial);
}

#define ATTEND(name, T, CHANNELS)                                                                                       \
  KERNEL(256) name(const float *q, const float *staged_k, const float *staged_v, const T *pages_k, const T *pages_v,    \
                   const uint32_t *sight, const float *bias, float *out, float *partial, int m, int heads,              \
                   int kv_heads, int d, float scale, int window, int distances, int parts) {                            \
    attend<T, CHANNELS>(q, staged_k, staged_v, pages_k, pages_v, sight, bias, out, partial, m, heads, kv_heads, d,      \
                        scale, window, distances, parts);                                                               \
  }

ATTEND(attend_f32_2, float, 2)
ATTEND(attend_f32_4, float, 4)
ATTEND(attend_f32_8, float, 8)
ATTEND(attend_f16_2, __half, 2)
ATTEND(attend_f16_4, __half, 4)
ATTEND(attend_f16_8, __half, 8)
ATTEND(attend_bf16_2, __nv_bfloat16, 2)
ATTEND(attend_bf16_4, __nv_bfloat16, 4)
ATTEND(attend_bf16_8, __nv_bfloat16, 8)

// One block a query: joins its parts, those that saw nothing left out, in their order.
KERNEL(256) merge(const float *partial, float *out, int d, int parts) {
  partial += (size_t)blockIdx.x * parts * (2 + d);
  float greatest = MINUS_INFINITY;
  for (int part = 0; part < parts; part++) greatest = max_of(partial[part * (2 + d)], greatest);
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = 0.0f, total = 0.0f;
    bool first = true;
    for (int part = 0; part < parts; part++) {
      const float *seen = partial + part * (2 + d);
      if (seen[1] == 0.0f) continue;
      const float weight = exp_of(seen[0] - greatest);
      // Added to nothing, a negative zero would lose its sign.
      sum = first ? seen[2 + i] * weight : sum + seen[2 + i] * weight;
      total = first ? seen[1] * weight : total + seen[1] * weight;
      first = false;
    }
    out[(size_t)blockIdx.x * d + i] = sum / total;
  }
}
