#include "ops/pair_scores.h"

#include "cuda/element.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of an entry

// Eight lanes an entry; its row is found by bisection, so that the entries are shared out evenly whatever the rows.
template <class T>
__global__ void __launch_bounds__(kThreads) pair_scores_kernel(PairScoresArgs a) {
  const int lane = threadIdx.x % kLanes;
  const int64_t entries = a.pairs.indptr[a.pairs.rows];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / kLanes);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const unsigned group = 0xffu << (threadIdx.x % kWarp / kLanes * kLanes);
  for (int64_t e = first; e < entries; e += stride) {
    int64_t low = 0, high = a.pairs.rows;  // the row is the last one that starts at or before e
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (a.pairs.indptr[middle] <= e ? low : high) = middle;
    }
    const T* user = static_cast<const T*>(a.user.data) + low * a.user.stride;
    const T* item = static_cast<const T*>(a.item.data) + a.pairs.indices[e] * a.item.stride;
    float sum = 0;
    for (int64_t k = lane; k < a.user.cols; k += kLanes) sum += to_float(user[k]) * to_float(item[k]);
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(group, sum, step);
    if (lane == 0) a.scores[e] = sum;
  }
}

}  // namespace

void pair_scores(const PairScoresArgs& a, Stream stream) {
  if (a.pairs.rows == 0) return;
  constexpr int kBlocks = 2048;  // enough to fill a device; the entries' number stays on it
  with_element_type(a.user.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    launch("pair_scores", pair_scores_kernel<T>, kBlocks, kThreads, 0, stream, a);
  });
}

}  // namespace cuda
}  // namespace prorec
