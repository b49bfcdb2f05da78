// All kernels, compiled as one module.

#include "attend.cu"
#include "dense.cu"
#include "dense_many.cu"
#include "draw.cu"
#include "elementwise.cu"
#include "integer.cu"
#include "integer_many.cu"
#include "kv.cu"
#include "norm.cu"
#include "rope.cu"
#include "round.cu"
#include "shared.cu"
#include "softmax.cu"

#ifndef __CUDACC__

#define INTEGER_KERNELS(X, type)                                                                                        \
  X(integer_##type##_1) X(integer_##type##_2) X(integer_##type##_4) X(integer_##type##_8)                               \
  X(integer_##type##_16) X(integer_##type##_128)
#define KERNELS(X)                                                                                                      \
  X(rms_norm) X(add_norm) X(add) X(scale) X(add_bias) X(gate) X(select_rows) X(rope) X(embed)                           \
  X(quantise) X(quantise_tiles)                                                                                         \
  INTEGER_KERNELS(X, q4_0) INTEGER_KERNELS(X, q4_1) INTEGER_KERNELS(X, q5_0) INTEGER_KERNELS(X, q5_1)                   \
  INTEGER_KERNELS(X, q8_0) INTEGER_KERNELS(X, q4_k) INTEGER_KERNELS(X, q5_k) INTEGER_KERNELS(X, q6_k)                   \
  X(round_f16) X(round_bf16) X(dense_f16_16) X(dense_f16_32) X(dense_f16_64) X(dense_f16_128)                           \
  X(dense_bf16_16) X(dense_bf16_32) X(dense_bf16_64) X(dense_bf16_128)                                                  \
  X(add_chains) X(dense_f32_1) X(dense_f32_8) X(write_f32) X(write_f16) X(write_bf16) X(gather_rows)                                  \
  X(copy_page) X(share_f32) X(share_f16) X(share_bf16)                                                                  \
  X(attend_f32_2) X(attend_f32_4) X(attend_f32_8) X(attend_f16_2) X(attend_f16_4) X(attend_f16_8)                       \
  X(attend_bf16_2) X(attend_bf16_4) X(attend_bf16_8) X(merge)                                                           \
  X(attend_shared_f32_2) X(attend_shared_f32_4) X(attend_shared_f32_8)                                                  \
  X(attend_shared_f16_2) X(attend_shared_f16_4) X(attend_shared_f16_8)                                                  \
  X(attend_shared_bf16_2) X(attend_shared_bf16_4) X(attend_shared_bf16_8)                               \
  X(highest) X(mass) X(ask) X(draw) X(further)

KERNELS(EXPORT)

// The directory that the emulator asks.
extern "C" shim::Start find_kernel(const char *name, size_t len) {
#define ENTRY(kernel) {#kernel, start_##kernel},
  static const std::map<std::string, shim::Start> directory = {KERNELS(ENTRY)};
  const auto found = directory.find(std::string(name, len));
  return found == directory.end() ? nullptr : found->second;
}

#endif
