#include "ops/sample_negatives.h"

#include "cpu/philox_lanes.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

// The target-th of the items outside the row's `count` ascending ones. Of these, the e-th has indices[e] - e items
// outside the row before it.
int64_t uniform_item(const int32_t* indices, int64_t count, int64_t target) {
  int64_t passed = 0;
  while (count > 0) {
    const int64_t half = (count + 1) / 2, e = passed + half - 1;
    passed = indices[e] - e <= target ? passed + half : passed;
    count -= half;
  }
  return target + passed;
}

int64_t weight(const int64_t* cumulative, int64_t item) {
  return cumulative[item] - (item ? cumulative[item - 1] : 0);
}

// Point `target` of the weights outside the row as a point of all weights.
int64_t weighted_point(const int32_t* indices, int64_t count, const int64_t* cumulative, int64_t target) {
  for (int64_t e = 0; e < count; ++e) {
    const int64_t own = weight(cumulative, indices[e]);
    if (cumulative[indices[e]] - own > target) break;
    target += own;
  }
  return target;
}

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

struct Row {
  const int32_t* indices;
  int64_t count, room;  // its items, and the weight of all others
};

Row find_row(const SampleNegativesArgs& a, int64_t b) {
  const int64_t begin = a.rows.indptr[a.users[b]], end = a.rows.indptr[a.users[b] + 1];
  Row row = {a.rows.indices + begin, end - begin, a.rows.cols - (end - begin)};
  if (a.cumulative) {
    row.room = a.rows.cols ? a.cumulative[a.rows.cols - 1] : 0;
    for (int64_t e = 0; e < row.count; ++e) row.room -= weight(a.cumulative, row.indices[e]);
  }
  return row;
}

void draw(const SampleNegativesArgs& a, const Row& row, uint64_t high, uint64_t low, int64_t* out) {
  if (row.room <= 0) {
    *out = -1;
    __atomic_store_n(a.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  const double uniform = philox_uniform(static_cast<uint32_t>(high), static_cast<uint32_t>(low));
  const int64_t target = static_cast<int64_t>(uniform * static_cast<double>(row.room));
  *out = a.cumulative ? weighted_point(row.indices, row.count, a.cumulative, target)
                      : uniform_item(row.indices, row.count, target);
}

}  // namespace

void sample_negatives(const SampleNegativesArgs& a) {
  constexpr int64_t kRows = 512;  // rows a task
  const int threads = threads_for(64 * a.batch * a.num, a.threads);
  parallel_for((a.batch + kRows - 1) / kRows, threads, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRows < a.batch ? (task + 1) * kRows : a.batch;
    for (int64_t first = task * kRows; first < end; first += kWideLanes) {
      const int64_t lanes = end - first < kWideLanes ? end - first : kWideLanes;
      Row rows[kWideLanes];
      for (int64_t lane = 0; lane < lanes; ++lane) rows[lane] = find_row(a, first + lane);
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
