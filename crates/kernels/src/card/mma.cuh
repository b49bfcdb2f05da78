// Products of small matrices on tensor cores; the shim multiplies one number after the other.

#pragma once
#include "card/card.cuh"

// c[16, 8] += a[16, 16] · b[16, 8], numbers of sixteen bits with sums in single precision. With
// g = lane / 4 and t = lane % 4, a holds rows g and g + 8 at inputs 2t and 2t + 8, two a word
// (a[0] and a[2] are row g's); b holds column g at the same inputs; c holds columns 2t and 2t + 1 of
// row g, then of row g + 8.
#ifdef __CUDACC__

DEVICE void mma(__nv_bfloat16, float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma(__half, float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[16, 8] += a[16, 32] · b[32, 8], signed bytes with sums in integers: as above, four inputs a word.
DEVICE void mma_bytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same over sixteen inputs: a holds rows g and g + 8, b column g, at inputs 4t to 4t + 3.
DEVICE void mma_half_bytes(int (&c)[4], const unsigned (&a)[2], unsigned b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

#else

namespace shim {

// One lane's four sums, where `part` numbers stand in a word: `dot(a, b, sum)` adds the product of two words.
template <class Sum, class Dot>
void multiply(Sum (&c)[4], const unsigned *a, int words_a, const unsigned *b, int words_b, Dot dot) {
  Gift gift{};
  for (int i = 0; i < words_a; i++) gift.words[i].u = a[i];
  for (int i = 0; i < words_b; i++) gift.words[4 + i].u = b[i];
  const int g = lane() / 4, t = lane() % 4;
  exchange(0xffffffffu, gift, [&](const Gift *gifts) {
    for (int i = 0; i < 4; i++) {
      const int low = i / 2, column = 2 * t + i % 2;
      for (int half = 0; half < words_b; half++)
        for (int word = 0; word < 4; word++)
          c[i] = dot(gifts[g * 4 + word].words[2 * half + low].u, gifts[column * 4 + word].words[4 + half].u, c[i]);
    }
    return 0;
  });
}

inline float number(__half, unsigned bits) { return __half2float({(uint16_t)bits}); }
inline float number(__nv_bfloat16, unsigned bits) { return __bfloat162float({(uint16_t)bits}); }

} // namespace shim

template <class T> DEVICE void mma(T, float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  shim::multiply(c, a, 4, b, 2, [](unsigned a, unsigned b, float sum) {
    sum = fmaf(shim::number(T(), a & 0xffffu), shim::number(T(), b & 0xffffu), sum);
    return fmaf(shim::number(T(), a >> 16), shim::number(T(), b >> 16), sum);
  });
}

DEVICE void mma_bytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  shim::multiply(c, a, 4, b, 2, [](unsigned a, unsigned b, int sum) { return __dp4a((int)a, (int)b, sum); });
}

DEVICE void mma_half_bytes(int (&c)[4], const unsigned (&a)[2], unsigned b) {
  shim::multiply(c, a, 2, &b, 1, [](unsigned a, unsigned b, int sum) { return __dp4a((int)a, (int)b, sum); });
}

#endif
