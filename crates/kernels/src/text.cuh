// The keys and values of one key head: kv.rs.

#pragma once
#include "card/card.cuh"

DEVICE unsigned to_bits(__half x) { return __half_as_ushort(x); }
DEVICE unsigned to_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

// A number as the cache keeps it.
template <class T> DEVICE T kept(float x) {
  T stored;
  narrow(x, stored);
  return stored;
}

// Eight numbers as the cache keeps them, side by side; `at` gives each.
template <class At> DEVICE uint4 eight(At at) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned low = to_bits(at(2 * i)), high = to_bits(at(2 * i + 1));
    words[i] = low | high << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

// A path's word: a staged row, and above it the place in its tile where those who see it find it.
DEVICE uint32_t row_of(uint32_t word) { return word & 0xffffffu; }
DEVICE int place_of(uint32_t word) { return (int)(word >> 24); }

// Pages, keys [PAGE, d] and values [d, PAGE], and behind what is committed the staged rows of a
// path.
template <class T> struct Text {
  const T *k, *v;
  // Numbers from a page to the next, and from a staged row to the next.
  size_t page_apart, row_apart;
  // The page of each tile; none where tiles lie in their order.
  const uint32_t *pages;
  const float *staged_k, *staged_v;
  const uint32_t *path;
  int committed, d;

  DEVICE_METHOD uint32_t page(int tile) const {
    return !pages ? tile : tile * PAGE < committed ? pages[tile] : 0;
  }
  DEVICE_METHOD size_t staged(int position) const { return row_of(path[position - committed]) * row_apart; }

  // Eight channels of a key, zeros where there are none.
  DEVICE_METHOD uint4 key(uint32_t page, int tile, int slot, int channel) const {
    const T *const from = k + page * page_apart + slot * d;
    const int position = tile * PAGE + slot;
    if (position < committed && d % 8 == 0) return channel < d ? *(const uint4 *)(from + channel) : uint4{0, 0, 0, 0};
    const float *const staged_key = position < committed ? nullptr : staged_k + staged(position);
    return eight([&](int i) {
      const int at = channel + i;
      return at >= d ? kept<T>(0.0f) : staged_key ? kept<T>(staged_key[at]) : from[at];
    });
  }

  // Eight slots of a channel's values, where the tile is committed.
  DEVICE_METHOD uint4 value(uint32_t page, int slot, int channel) const {
    return channel < d ? *(const uint4 *)(v + page * page_apart + channel * PAGE + slot) : uint4{0, 0, 0, 0};
  }
  // And where some of it may not be.
  DEVICE_METHOD uint4 any_value(uint32_t page, int tile, int slot, int channel) const {
    if (channel >= d) return {0, 0, 0, 0};
    const T *const from = v + page * page_apart + channel * PAGE + slot;
    return eight([&](int i) {
      const int position = tile * PAGE + slot + i;
      return position < committed ? from[i] : kept<T>(staged_v[staged(position) + channel]);
    });
  }
};

static_assert(sizeof(Text<__half>) == 72, "joint.rs says so");
