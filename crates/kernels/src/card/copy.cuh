// From memory to shared memory, past the registers: sixteen bytes at a time, awaited by group.

#pragma once
#include "card/card.cuh"

#ifdef __CUDACC__

// Shared memory that a launch gives its kernel; what a kernel declares itself ends at 48 KiB.
extern __shared__ uint4 room[];

// Starts a copy of sixteen bytes, or of zeros where there is nothing to copy.
DEVICE void copy(uint4 *to, const void *from, bool is_there) {
  const unsigned place = (unsigned)__cvta_generic_to_shared(to);
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of this thread's copies.
DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, but for the last so many groups.
template <int GROUPS> DEVICE void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }

// Four matrices of 8 × 8 numbers of sixteen bits, whose rows lanes 8i to 8i + 7 point to; transposed: a lane has rows
// 2t and 2t + 1 of column g of each, with g = lane / 4 and t = lane % 4.
DEVICE void load_transposed(unsigned (&to)[4], const uint4 *row) {
  const unsigned place = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(place)
               : "memory");
}

#else

static uint4 *const room = shim::room;

DEVICE void copy(uint4 *to, const void *from, bool is_there) {
  shim::current().copies.push_back({to, is_there ? from : nullptr});
}

DEVICE void end_copies() { shim::current().groups.push_back(shim::current().copies.size()); }

// Nothing is copied before it is awaited, so that what is read too soon is wrong.
template <int GROUPS> DEVICE void await_copies() { shim::copy_groups(GROUPS); }

DEVICE void load_transposed(unsigned (&to)[4], const uint4 *row) {
  shim::Gift gift{};
  std::memcpy(gift.words, &row, sizeof row);
  const int g = shim::lane() / 4, t = shim::lane() % 4;
  shim::exchange(0xffffffffu, gift, [&](const shim::Gift *gifts) {
    for (int matrix = 0; matrix < 4; matrix++) {
      uint16_t pair[2];
      for (int i = 0; i < 2; i++) {
        const uint4 *from;
        std::memcpy(&from, gifts[8 * matrix + 2 * t + i].words, sizeof from);
        std::memcpy(&pair[i], (const uint16_t *)from + g, 2);
      }
      to[matrix] = pair[0] | (unsigned)pair[1] << 16;
    }
    return 0;
  });
}

#endif
