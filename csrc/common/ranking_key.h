// Candidates of a ranking as single integers that order by (score descending, item ascending): the larger key is the
// better. Keys of one row are distinct, and none is 0.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace prorec {

using Key = uint64_t;

// An integer that rises with the score.
PRF_HOST_DEVICE uint32_t ordered_score(float score) {
  uint32_t raw;
  score += 0.f;  // -0 becomes 0: they are equal scores
  memcpy(&raw, &score, sizeof raw);
  return raw >> 31 ? ~raw : raw | 0x80000000u;
}
PRF_HOST_DEVICE float score_of_ordered(uint32_t ordered) {
  const uint32_t raw = ordered >> 31 ? ordered & 0x7fffffffu : ~ordered;
  float score;
  memcpy(&score, &raw, sizeof score);
  return score;
}

PRF_HOST_DEVICE Key make_key(float score, int64_t item) {
  return static_cast<Key>(ordered_score(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(item));
}
PRF_HOST_DEVICE float key_score(Key key) { return score_of_ordered(static_cast<uint32_t>(key >> 32)); }
PRF_HOST_DEVICE int64_t key_item(Key key) { return 0xffffffffu - static_cast<uint32_t>(key); }

}  // namespace prorec
