#include "ops/pair_scores.h"

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {

void pair_scores(const PairScoresArgs& a) {
  constexpr int64_t kRows = 16;  // rows a task
  const int64_t M = a.pairs.rows, D = a.user.cols;
  const int threads = threads_for((a.pairs.indptr[M] - a.pairs.indptr[0]) * D, a.threads);
  Workspace workspace(Workspace::bytes_for<float>(threads * 2 * D));
  float* scratch = workspace.take<float>(threads * 2 * D);
  parallel_for((M + kRows - 1) / kRows, threads, [&](int64_t task, int slot) {
    float* rows = scratch + slot * 2 * D;
    for (int64_t r = task * kRows; r < M && r < (task + 1) * kRows; ++r) {
      const float* user = row_as_float(a.user, r, rows);
      for (int64_t e = a.pairs.indptr[r]; e < a.pairs.indptr[r + 1]; ++e)
        a.scores[e] = dot(user, row_as_float(a.item, a.pairs.indices[e], rows + D), D);
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
