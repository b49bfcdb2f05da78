// Operations on single numbers, and the look-up of rows: elementwise.rs.

#include "exp.cuh"
#include "forms.cuh"

// The first number of this thread, and how far it is to its next one.
#define EACH(i, count) \
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)(count); i += (size_t)gridDim.x * blockDim.x)

KERNEL(256) add(const float *a, const float *b, float *out, int count) {
  begin();
  EACH(i, count) out[i] = a[i] + b[i];
}

KERNEL(256) scale(const float *x, float *out, int count, float factor) {
  begin();
  EACH(i, count) out[i] = x[i] * factor;
}

KERNEL(256) add_bias(const float *x, const float *bias, float *out, int count, int width) {
  begin();
  EACH(i, count) out[i] = x[i] + bias[i % width];
}

// The order of Activation in elementwise.rs.
enum Activation { SILU, GELU_TANH, GELU, RELU };

DEVICE float activated(int activation, float v) {
  switch (activation) {
  case SILU: return silu(v);
  case GELU_TANH: return gelu_tanh(v);
  case GELU: return (float)(0.5 * (double)v * (1.0 + erf((double)v * 0.70710678118654752440)));
  default: return max_of(0.0f, v);
  }
}

// activation(gate) · up; up may be missing. Rows of `width` numbers: a block GATED of them.
constexpr int GATED = 1024;
KERNEL(128) gate(const float *x, const float *up, HANDED, int width, int activation) {
  begin();
  const size_t at = (size_t)blockIdx.y * width;
  Handed{to, scales, width, depth, form}.row(blockIdx.y, blockIdx.x * GATED, (blockIdx.x + 1) * GATED, [&](int i) {
    return activated(activation, x[at + i]) * (up ? up[at + i] : 1.0f);
  });
}

// Rows of x, [.., width], by their numbers.
KERNEL(256) select_rows(const float *x, const uint32_t *rows, float *out, int count, int width) {
  begin();
  EACH(i, count) out[i] = x[(size_t)rows[i / width] * width + i % width];
}
