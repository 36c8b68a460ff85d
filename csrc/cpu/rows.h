// Reading rows of any storage type as float32, and how many rows make a task.
#pragma once
#include "common/parallel.h"
#include "common/views.h"
#include "cpu/simd.h"

namespace prorec {
namespace PRF_ISA {

PRF_INLINE float to_float(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Row `row` of `view` as float32: the row itself when it is stored so, else a copy in `scratch` ([cols]).
PRF_INLINE const float* row_as_float(const MatrixView& view, int64_t row, float* scratch) {
  if (view.dtype == DType::kFloat32) return static_cast<const float*>(view.data) + row * view.stride;
  const uint16_t* source = static_cast<const uint16_t*>(view.data) + row * view.stride;
  for (int64_t k = 0; k < view.cols; ++k) scratch[k] = to_float(source[k]);
  return scratch;
}

PRF_INLINE float dot(const float* a, const float* b, int64_t n) {
  Vec sum[2] = {};
  int64_t k = 0;
  for (; k + 2 * kLanes <= n; k += 2 * kLanes) {
    sum[0] += load(a + k) * load(b + k);
    sum[1] += load(a + k + kLanes) * load(b + k + kLanes);
  }
  if (k + kLanes <= n) {
    sum[0] += load(a + k) * load(b + k);
    k += kLanes;
  }
  float out = reduce_add(sum[0] + sum[1]);
  for (; k < n; ++k) out += a[k] * b[k];
  return out;
}

// Below about this many multiply-adds a call stays on the calling thread: waking another costs more.
constexpr int64_t kSerialWork = 1 << 17;

PRF_INLINE int threads_for(int64_t work, int threads) { return work < kSerialWork ? 1 : threads; }

}  // namespace PRF_ISA
}  // namespace prorec
