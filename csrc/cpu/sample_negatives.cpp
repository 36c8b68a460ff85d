#include "ops/sample_negatives.h"

#include "common/negative_draw.h"
#include "cpu/philox_lanes.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

// Replaces points by the items that hold them, the first with cumulative > point. Several bisections go in step, which
// hides the latency of each one's loads.
void find_items(const int64_t* cumulative, int64_t items, int64_t* points, int64_t count) {
  constexpr int64_t kTogether = 16;
  for (int64_t first = 0; first < count; first += kTogether) {
    int64_t low[kTogether] = {}, point[kTogether] = {};
    const int64_t together = count - first < kTogether ? count - first : kTogether;
    for (int64_t i = 0; i < together; ++i) point[i] = points[first + i];
    for (int64_t left = items; left > 1; left -= left / 2)
      for (int64_t i = 0; i < kTogether; ++i)
        low[i] = cumulative[low[i] + left / 2 - 1] <= point[i] ? low[i] + left / 2 : low[i];
    for (int64_t i = 0; i < together; ++i) points[first + i] = point[i] < 0 ? point[i] : low[i];
  }
}

void draw(const SampleNegativesArgs& a, const NegativeRow& row, uint64_t high, uint64_t low, int64_t* out) {
  *out = negative_draw(row, static_cast<uint32_t>(high), static_cast<uint32_t>(low));
  if (*out < 0) __atomic_store_n(a.failed, 1, __ATOMIC_RELAXED);
}

}  // namespace

void sample_negatives(const SampleNegativesArgs& a) {
  constexpr int64_t kRows = 512;  // rows a task
  const int threads = threads_for(64 * a.batch * a.num, a.threads);
  parallel_for((a.batch + kRows - 1) / kRows, threads, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRows < a.batch ? (task + 1) * kRows : a.batch;
    for (int64_t first = task * kRows; first < end; first += kWideLanes) {
      const int64_t lanes = end - first < kWideLanes ? end - first : kWideLanes;
      NegativeRow rows[kWideLanes];
      for (int64_t lane = 0; lane < lanes; ++lane)
        rows[lane] = negative_row(a.rows, a.cumulative, a.place, a.users[first + lane]);
      WideVec b;
      for (int lane = 0; lane < kWideLanes; ++lane) b[lane] = static_cast<uint64_t>(first + lane);
      for (int64_t j = 0; j < a.num; j += 2) {
        const WidePhilox words = philox_lanes(a.seed, {b, b >> 32, wide_splat(static_cast<uint64_t>(j / 2)),
                                                       wide_splat(kNegativeStream)});
        for (int64_t lane = 0; lane < lanes; ++lane) {
          int64_t* out = a.out + (first + lane) * a.num + j;
          draw(a, rows[lane], words.c0[lane], words.c1[lane], out);
          if (j + 1 < a.num) draw(a, rows[lane], words.c2[lane], words.c3[lane], out + 1);
        }
      }
    }
    const int64_t done = task * kRows * a.num;
    if (a.cumulative) find_items(a.cumulative, a.rows.cols, a.out + done, end * a.num - done);
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
