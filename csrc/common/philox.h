// Philox4x32-10 (Salmon et al., 2011): random numbers as a function of (seed, counter), so the same on every backend
// and thread count. Host and device.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace prorec {

// The last counter word: one seed gives each use numbers of its own.
enum PhiloxStream : uint32_t { kEdgeStream = 1, kNoiseStream = 2, kNegativeStream = 3 };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;

struct Philox {
  uint32_t c0, c1, c2, c3;
};

// Four random words for a counter; philox_lanes.h makes the same of several counters at once.
PRF_HOST_DEVICE Philox philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxMultiplier0} * c0, p1 = uint64_t{kPhiloxMultiplier1} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {c0, c1, c2, c3};
}

// A number in [0, 1) from the top 53 of 64 bits.
PRF_HOST_DEVICE double philox_uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(static_cast<int64_t>(bits)) * 0x1p-53;
}

}  // namespace prorec
