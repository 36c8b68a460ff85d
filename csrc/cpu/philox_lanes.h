// Philox4x32-10 of several counters at once, each word in a 64-bit lane, whose upper half is of no account: the
// multiplication reads the lower half only.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common/philox.h"
#include "cpu/simd.h"

namespace prorec {
namespace PRF_ISA {

constexpr int kWideLanes = kLanes / 2;
typedef uint64_t WideVec __attribute__((vector_size(kLanes * 4)));
typedef int32_t HalfIVec __attribute__((vector_size(kWideLanes * 4), aligned(4), may_alias));

PRF_INLINE WideVec wide_splat(uint64_t x) { return WideVec{} + x; }
PRF_INLINE WideVec wide_load(const int32_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const HalfIVec*>(p), WideVec);
}

PRF_INLINE WideVec multiply_low_halves(WideVec a, uint32_t b) {
#if defined(__AVX512F__)
  return (WideVec)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (WideVec)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (WideVec)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(b);
#endif
}

struct WidePhilox {
  WideVec c0, c1, c2, c3;
};

PRF_INLINE WidePhilox philox_lanes(uint64_t seed, WidePhilox c) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const WideVec p0 = multiply_low_halves(c.c0, kPhiloxMultiplier0);
    const WideVec p1 = multiply_low_halves(c.c2, kPhiloxMultiplier1);
    c = {(p1 >> 32) ^ c.c1 ^ wide_splat(k0), p1, (p0 >> 32) ^ c.c3 ^ wide_splat(k1), p0};
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {c.c0 & 0xFFFFFFFFu, c.c1 & 0xFFFFFFFFu, c.c2 & 0xFFFFFFFFu, c.c3 & 0xFFFFFFFFu};
}

}  // namespace PRF_ISA
}  // namespace prorec
