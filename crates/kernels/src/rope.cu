// Rotary position embedding: rope.rs, whose sines and cosines it is given.

#include "card/card.cuh"

// Tensors of one launch: x and where it goes, [m, heads, d], and its heads.
constexpr int TURNED = 2;
struct Turned {
  unsigned long long x[TURNED], outs[TURNED], heads[TURNED];
};

// One block a row and head, those of the first tensor first; cos, sin: [m, pairs].
KERNEL(256) rope(GIVEN(Turned) all, const float *cos, const float *sin, int d, int pairs) {
  begin();
  const int row = blockIdx.x, first = (int)all.heads[0];
  const int tensor = (int)blockIdx.y < first ? 0 : 1, head = tensor ? blockIdx.y - first : blockIdx.y;
  const size_t at = ((size_t)row * (int)all.heads[tensor] + head) * d;
  const float *x = (const float *)all.x[tensor] + at;
  float *out = (float *)all.outs[tensor] + at;
  cos += (size_t)row * pairs;
  sin += (size_t)row * pairs;
  for (int channel = threadIdx.x; channel < d; channel += blockDim.x) {
    float y = x[channel];
    if (channel < pairs)
      y = y * cos[channel] - x[channel + pairs] * sin[channel];
    else if (channel < 2 * pairs)
      y = y * cos[channel - pairs] + x[channel - pairs] * sin[channel - pairs];
    out[channel] = y;
  }
}
