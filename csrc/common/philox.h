// Philox4x32-10 (Salmon et al., 2011): random numbers as a function of (seed, counter), so the same on every backend
// and thread count. Host and device.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define PRF_PHILOX_INLINE __host__ __device__ __forceinline__
#else
#define PRF_PHILOX_INLINE __attribute__((always_inline)) static inline
#endif

namespace prorec {

// The last counter word: one seed gives each use numbers of its own.
enum PhiloxStream : uint32_t { kEdgeStream = 1, kNoiseStream = 2, kNegativeStream = 3 };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;

// A number in [0, 1) from the top 53 of 64 bits.
PRF_PHILOX_INLINE double philox_uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(static_cast<int64_t>(bits)) * 0x1p-53;
}

}  // namespace prorec
