#include "ops/sample_negatives.h"

#include "common/negative_draw.h"
#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// The first item with cumulative > point.
__device__ __forceinline__ int64_t find_item(const int64_t* cumulative, int64_t items, int64_t point) {
  int64_t low = 0;
  for (int64_t left = items; left > 1; left -= left / 2)
    low = cumulative[low + left / 2 - 1] <= point ? low + left / 2 : low;
  return low;
}

// A thread for two draws, which one Philox counter gives.
__global__ void __launch_bounds__(kThreads) sample_negatives_kernel(SampleNegativesCudaArgs a) {
  const int64_t pairs = (a.num + 1) / 2;  // of a row
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = at / pairs, pair = at % pairs;
  if (b >= a.batch) return;
  const int64_t user = a.users[b];
  if (user < 0 || user >= a.rows.rows) __trap();
  const NegativeRow row = negative_row(a.rows, a.cumulative, a.place, user);
  const Philox words = philox(static_cast<uint64_t>(*a.seed), static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32),
                              static_cast<uint32_t>(pair), kNegativeStream);
  for (int64_t j = 2 * pair; j < a.num && j < 2 * pair + 2; ++j) {
    const bool second = j % 2;
    int64_t draw = negative_draw(row, second ? words.c2 : words.c0, second ? words.c3 : words.c1);
    if (a.cumulative && draw >= 0) draw = find_item(a.cumulative, a.rows.cols, draw);
    a.out[b * a.num + j] = draw;
  }
}

}  // namespace

void sample_negatives(const SampleNegativesCudaArgs& a, Stream stream) {
  const int64_t blocks = ceil_div(a.batch * ((a.num + 1) / 2), kThreads);
  launch("sample_negatives", sample_negatives_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, a);
}

}  // namespace cuda
}  // namespace prorec
