// One vector type per instruction set, from the compiler's vector extensions: the same source serves SSE2, AVX2,
// AVX-512 and NEON. Included by csrc/cpu only, whose files are compiled once per level in namespace PRF_ISA.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define PRF_INLINE __attribute__((always_inline)) static inline

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
typedef float VecUnaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

PRF_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
PRF_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
PRF_INLINE Vec splat(float x) { return Vec{} + x; }

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
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}
PRF_INLINE float reduce_max(Vec v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// 2^x for x in [-126, 127], 1.2e-7 relative. Callers bound x; exp2_clamped below does it for them.
PRF_INLINE Vec exp2(Vec x) {
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);  // [-0.5, 0.5]
  // Minimax for 2^f, degree 6.
  Vec p = splat(1.53987410e-4f);
  p = p * f + 1.33923441e-3f;
  p = p * f + 9.61817242e-3f;
  p = p * f + 5.55036426e-2f;
  p = p * f + 2.40226522e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
  IVec bits;
  std::memcpy(&bits, &p, sizeof bits);
  IVec n;
  std::memcpy(&n, &shifted, sizeof n);
  bits += n << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// 2^x with x below -126 taken as -126 (1.2e-38) and above 127 as 127.
PRF_INLINE Vec exp2_clamped(Vec x) { return exp2(min(max(x, splat(-126.f)), splat(127.f))); }

}  // namespace PRF_ISA
}  // namespace prorec
