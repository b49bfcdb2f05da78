// Rotary position embedding: rope.rs, whose sines and cosines it is given.

#include "card/card.cuh"

// One block a row; x: [m, heads, d]; cos, sin: [m, pairs].
KERNEL(256) rope(const float *x, const float *cos, const float *sin, float *out, int heads, int d, int pairs) {
  begin();
  const size_t row = blockIdx.x;
  cos += row * pairs;
  sin += row * pairs;
  for (int i = threadIdx.x; i < heads * d; i += blockDim.x) {
    const float *head = x + (row * heads + i / d) * d;
    const int channel = i % d;
    float y = head[channel];
    if (channel < pairs)
      y = y * cos[channel] - head[channel + pairs] * sin[channel];
    else if (channel < 2 * pairs)
      y = y * cos[channel - pairs] + head[channel - pairs] * sin[channel - pairs];
    out[row * heads * d + i] = y;
  }
}
