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

  // Eight channels of a key, zeros where there are none, where lanes can take a tile's keys so.
  DEVICE_METHOD bool is_whole(int tile) const { return tile * PAGE + PAGE <= committed && d % 8 == 0; }
  DEVICE_METHOD uint4 key(uint32_t page, int slot, int channel) const {
    return channel < d ? *(const uint4 *)(k + page * page_apart + slot * d + channel) : uint4{0, 0, 0, 0};
  }
  // Eight slots of a channel's values, where the tile is committed.
  DEVICE_METHOD uint4 value(uint32_t page, int slot, int channel) const {
    return channel < d ? *(const uint4 *)(v + page * page_apart + channel * PAGE + slot) : uint4{0, 0, 0, 0};
  }

  // One channel of a key or value, wherever it is.
  DEVICE_METHOD T any_key(uint32_t page, int position, int channel) const {
    if (channel >= d) return kept<T>(0.0f);
    return position < committed ? k[page * page_apart + position % PAGE * d + channel]
                                : kept<T>(staged_k[staged(position) + channel]);
  }
  DEVICE_METHOD T any_value(uint32_t page, int position, int channel) const {
    if (channel >= d) return kept<T>(0.0f);
    return position < committed ? v[page * page_apart + channel * PAGE + position % PAGE]
                                : kept<T>(staged_v[staged(position) + channel]);
  }
};
static_assert(sizeof(Text<__half>) == 72, "joint.rs says so");
