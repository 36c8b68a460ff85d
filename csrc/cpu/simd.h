// One vector type per instruction set, from the compiler's vector extensions: the same source serves SSE2, AVX2,
// AVX-512 and NEON. Included by csrc/cpu only, whose files are compiled once per level in namespace PRF_ISA.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define PRF_INLINE __attribute__((always_inline)) static inline
#define PRF_INLINE_MEMBER __attribute__((always_inline)) inline

namespace prorec {
namespace PRF_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));  // for sums and shifts of bits, which may overflow
typedef float VecUnaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

PRF_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
PRF_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
// x - 0 and not 0 + x: the latter is an addition that stays, since 0 + -0 is 0.
PRF_INLINE Vec splat(float x) { return x - Vec{}; }

// Both return b where either is NaN.
PRF_INLINE Vec max(Vec a, Vec b) {
#ifdef __AVX512F__
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
PRF_INLINE Vec min(Vec a, Vec b) {
#ifdef __AVX512F__
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

PRF_INLINE float reduce_add(Vec v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
#endif
}
PRF_INLINE float reduce_max(Vec v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

template <class To, class From>
PRF_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// 2^x to 1.7e-7 relative, for x in [-126, 127] or NaN: the caller bounds x, or calls one of the two below.
PRF_INLINE Vec exp2(Vec x) {
  const Vec shifted = x + 12582912.f;     // 1.5 * 2^23: rounds to the nearest integer, found in the low bits
  const Vec f = x - (shifted - 12582912.f);  // [-0.5, 0.5]
  Vec p = splat(1.3264727e-3f);           // minimax in relative error, the constant fixed at 1
  p = p * f + 9.6715130e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314700e-1f;
  p = p * f + 1.0f;
  return bits<Vec>(bits<UVec>(p) + (bits<UVec>(shifted) << 23));
}

// The same with x below -126 taken as -126 (1.2e-38).
PRF_INLINE Vec exp2_bounded_above(Vec x) { return exp2(max(splat(-126.f), x)); }

// ln(x) to 2e-7 absolute or relative, for normal positive x.
PRF_INLINE Vec log(Vec x) {
  const IVec exponent = bits<IVec>(bits<UVec>(x) - 0x3f3504f3) >> 23;  // so that the mantissa is in [sqrt(1/2), sqrt(2))
  const Vec m = bits<Vec>(bits<UVec>(x) - (bits<UVec>(exponent) << 23));
  const Vec s = (m - 1.f) / (m + 1.f);                             // ln m = 2 atanh(s), |s| < 0.172
  const Vec s2 = s * s;
  Vec p = s2 * (2.f / 9) + 2.f / 7;
  p = p * s2 + 2.f / 5;
  p = p * s2 + 2.f / 3;
  p = p * s2 + 2.f;
  return __builtin_convertvector(exponent, Vec) * 0.69314718f + p * s;
}

}  // namespace PRF_ISA
}  // namespace prorec
