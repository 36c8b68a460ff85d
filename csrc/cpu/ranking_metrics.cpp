#include "ops/ranking_metrics.h"

#include "common/ranked_hits.h"
#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int64_t kRows = 256;  // rows a task, whose sums are added in one order

}  // namespace

void ranking_metrics(const RankingMetricsArgs& a) {
  const int64_t M = a.rows, K = a.cols, N = a.truth.cols;
  const int64_t tasks = (M + kRows - 1) / kRows, sums = a.num_ks * kUserMetrics;
  int threads = threads_for(16 * M * K, a.threads);
  threads = threads > tasks ? static_cast<int>(tasks) : threads;
  Workspace workspace(Workspace::bytes_for<double>(2 * (K + 1)) + Workspace::bytes_for<double>(tasks * sums) +
                      Workspace::bytes_for<int64_t>(tasks) + Workspace::bytes_for<int32_t>(threads * N));
  double* gain = workspace.take<double>(2 * (K + 1));  // [K] 1 / log2(rank + 1)
  double* ideal = gain + K + 1;                        // [K + 1] its running sum
  double* parts = workspace.take<double>(tasks * sums);  // [tasks][num_ks][kUserMetrics]
  int64_t* counted = workspace.take<int64_t>(tasks);
  int32_t* best_rank = workspace.take<int32_t>(threads * N);  // [threads][N] least 0-based rank an item was seen at

  ideal[0] = 0;
  for (int64_t r = 0; r < K; ++r) {
    gain[r] = rank_gain(r);
    ideal[r + 1] = ideal[r] + gain[r];
  }
  for (int64_t i = 0; i < threads * N; ++i) best_rank[i] = static_cast<int32_t>(K);

  parallel_for(tasks, threads, [&](int64_t task, int slot) {
    double* sum = parts + task * sums;
    int32_t* seen = best_rank + slot * N;
    for (int64_t i = 0; i < sums; ++i) sum[i] = 0;
    counted[task] = 0;
    for (int64_t u = task * kRows; u < M && u < (task + 1) * kRows; ++u) {
      const int32_t* truth = a.truth.indices + a.truth.indptr[u];
      const int64_t relevant = a.truth.indptr[u + 1] - a.truth.indptr[u];
      if (relevant == 0) continue;
      ++counted[task];
      RankedHits found{};
      int64_t at = 0;
      for (int64_t c = 0; c < a.num_ks; ++c) {
        // Cut-offs come ascending, so each one carries on where the one before stopped.
        const int64_t k = a.ks[c];
        for (; at < k; ++at) {
          const int64_t item = a.items[u * K + at];
          if (item < 0) continue;
          if (seen[item] > at) seen[item] = static_cast<int32_t>(at);
          if (contains(truth, relevant, item)) add_hit(found, at, gain[at]);
        }
        add_metrics(found, k, relevant, ideal, sum + c * kUserMetrics);
      }
    }
  });

  int64_t users = 0;
  for (int64_t task = 0; task < tasks; ++task) users += counted[task];
  for (int64_t c = 0; c < a.num_ks; ++c) {
    double* row = a.table + c * kNumRankingMetrics;
    for (int m = 0; m < kNumRankingMetrics; ++m) row[m] = 0;
    for (int64_t task = 0; task < tasks; ++task)
      for (int m = 0; m < kUserMetrics; ++m) row[m] += parts[task * sums + c * kUserMetrics + m];
    for (int m = 0; m < kUserMetrics; ++m) row[m] /= static_cast<double>(users > 0 ? users : 1);
    int64_t shown = 0;
    for (int64_t i = 0; i < N; ++i) {
      bool within = false;
      for (int t = 0; t < threads; ++t) within |= best_rank[t * N + i] < a.ks[c];
      shown += within;
    }
    row[kUserMetrics] = static_cast<double>(shown) / static_cast<double>(N > 0 ? N : 1);
  }
}

}  // namespace PRF_ISA
}  // namespace prorec
