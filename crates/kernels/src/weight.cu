// Weights in panels of sixteen outputs, and their rows as numbers: weight.rs, formats.rs.

#pragma once
#include "round.cu"

// The order of WeightType in formats.rs.
enum Type { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K };
enum Scaling { CENTRED, AFFINE, SUPER, HALVES };

constexpr int GROUP = 4 * LANES;

// Where the parts of a unit lie, and how codes and scales make a number.
struct Layout {
  Scaling scaling;
  int bits, offset, head, scales, codes, blocks;
  __device__ constexpr int block(int b) const { return head + b * (scales + codes); }
  __device__ constexpr int bytes() const { return block(blocks); }
};

__device__ constexpr Layout layout_of(int type) {
  return type == Q4_0   ? Layout{CENTRED, 4, 8, 2 * LANES, 0, 4 * GROUP, 1}
         : type == Q4_1 ? Layout{AFFINE, 4, 0, 4 * LANES, 0, 4 * GROUP, 1}
         : type == Q5_0 ? Layout{CENTRED, 5, 16, 2 * LANES, 0, 5 * GROUP, 1}
         : type == Q5_1 ? Layout{AFFINE, 5, 0, 4 * LANES, 0, 5 * GROUP, 1}
         : type == Q8_0 ? Layout{CENTRED, 8, 128, 2 * LANES, 0, 8 * GROUP, 1}
         : type == Q4K  ? Layout{SUPER, 4, 0, 4 * LANES, 2 * LANES, 4 * GROUP, 8}
         : type == Q5K  ? Layout{SUPER, 5, 0, 4 * LANES, 2 * LANES, 5 * GROUP, 8}
                        : Layout{HALVES, 6, 32, 2 * LANES, 2 * LANES, 6 * GROUP, 8};
}

// Input i of a row of a dense weight, [n, k].
DEVICE float dense_number(int type, const uint8_t *weight, size_t row, int i, int k) {
  if (type == F32) return ((const float *)weight)[row * k + i];
  const uint8_t *at = weight + 16 * place_of((int)row, i / 8, (k + STEP - 1) / STEP) + 2 * (i % 8);
  return type == F16 ? half_at(at) : __int_as_float((unsigned)*(const unsigned short *)at << 16);
}

// The code of input 4 · group + byte % 4 of output byte / 4.
DEVICE int code_of(const Layout &layout, const uint8_t *codes, int group, int byte) {
  if (layout.bits == 8) return codes[group * GROUP + byte];
  const int nibble = codes[group % 4 * GROUP + byte] >> group / 4 * 4 & 15;
  if (layout.bits == 5) return nibble | (codes[4 * GROUP + byte] >> group & 1) << 4;
  if (layout.bits == 6) return nibble | (codes[(4 + group / 4) * GROUP + byte] >> 2 * (group % 4) & 3) << 4;
  return nibble;
}

// One block a token: its row of the weight, [k], in single precision.
KERNEL(256) embed(const uint8_t *weight, const uint32_t *tokens, float *out, int k, int type) {
  begin();
  const size_t token = tokens[blockIdx.x];
  out += (size_t)blockIdx.x * k;
  if (type <= BF16) {
    for (int i = threadIdx.x; i < k; i += blockDim.x) out[i] = dense_number(type, weight, token, i, k);
    return;
  }
  const Layout layout = layout_of(type);
  const int lane = token % LANES, unit_inputs = 32 * layout.blocks;
  const uint8_t *panel = weight + token / LANES * ((size_t)(k / unit_inputs) * layout.bytes());
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    const uint8_t *unit = panel + (size_t)(i / unit_inputs) * layout.bytes();
    const uint8_t *scales = unit + layout.block(i % unit_inputs / 32), *codes = scales + layout.scales;
    const int within = i % 32, code = code_of(layout, codes, within / 4, 4 * lane + within % 4);
    const float d = half_at(unit + 2 * lane);
    switch (layout.scaling) {
    case CENTRED: out[i] = d * (float)(code - layout.offset); break;
    case AFFINE: out[i] = d * (float)code + half_at(unit + 2 * (LANES + lane)); break;
    case SUPER: {
      const float floor = half_at(unit + 2 * (LANES + lane)) * (float)scales[LANES + lane];
      out[i] = d * (float)scales[lane] * (float)code + floor;
      break;
    }
    case HALVES: {
      const float scale = (float)(int8_t)scales[within / 16 * LANES + lane];
      out[i] = d * scale * (float)(code - 32);
      break;
    }
    }
  }
}
