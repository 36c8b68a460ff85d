#include "ops/bpr.h"

#include <cmath>

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {

void bpr(const BprArgs& a) {
  constexpr int64_t kRows = 256;  // rows a task
  const int64_t B = a.user.rows, D = a.user.cols;
  const int64_t tasks = (B + kRows - 1) / kRows;
  const int threads = threads_for(8 * B * D, a.threads);
  Workspace workspace(threads * Workspace::bytes_for<float>(3 * D));
  float* scratch = workspace.take<float>(threads * 3 * D);

  parallel_for(tasks, threads, [&](int64_t task, int slot) {
    float* rows = scratch + slot * 3 * D;
    for (int64_t b = task * kRows; b < B && b < (task + 1) * kRows; ++b) {
      const float* u = row_as_float(a.user, b, rows);
      const float* p = row_as_float(a.positive, b, rows + D);
      const float* n = row_as_float(a.negative, b, rows + 2 * D);
      const float x = dot(u, n, D) - dot(u, p, D);
      const float e = std::exp(-std::fabs(x));
      a.loss[b] = (x > 0 ? x : 0 * x) + std::log1p(e);  // 0 * x keeps a NaN
      if (!a.grad_rows) continue;
      const float g = (x >= 0 ? 1.f : e) / (1 + e) * a.grad_rows[b];  // sigmoid(x)
      for (int64_t k = 0; k < D; ++k) {
        a.grad_user[b * D + k] = g * (n[k] - p[k]);
        a.grad_positive[b * D + k] = -g * u[k];
        a.grad_negative[b * D + k] = g * u[k];
      }
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
