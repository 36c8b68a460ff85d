#include "ops/bpr.h"

#include "common/workspace.h"
#include "cpu/rows.h"
#include "cpu/softplus.h"

namespace prorec {
namespace PRF_ISA {

void bpr(const BprArgs& a) {
  constexpr int64_t kRows = 64;  // rows a task: at the usual widths they stay in the first-level cache
  const int64_t B = a.user.rows, D = a.user.cols;
  const int threads = threads_for(8 * B * D, a.threads);
  Workspace workspace(Workspace::bytes_for<float>(threads * 3 * D));
  float* scratch = workspace.take<float>(threads * 3 * D);

  parallel_for((B + kRows - 1) / kRows, threads, [&](int64_t task, int slot) {
    float *u_row = scratch + slot * 3 * D, *p_row = u_row + D, *n_row = p_row + D;
    const int64_t b0 = task * kRows, rows = B - b0 < kRows ? B - b0 : kRows;
    float x[kRows] = {}, loss[kRows], sigmoid[kRows];
    for (int64_t r = 0; r < rows; ++r) {
      const float* u = row_as_float(a.user, b0 + r, u_row);
      const float* p = row_as_float(a.positive, b0 + r, p_row);
      const float* n = row_as_float(a.negative, b0 + r, n_row);
      Vec sum{};
      int64_t k = 0;
      for (; k + kLanes <= D; k += kLanes) sum += load(u + k) * (load(n + k) - load(p + k));
      x[r] = reduce_add(sum);
      for (; k < D; ++k) x[r] += u[k] * (n[k] - p[k]);
    }
    for (int64_t r = 0; r < rows; r += kLanes) {
      const Softplus found = softplus(load(x + r));
      store(loss + r, found.value);
      store(sigmoid + r, found.sigmoid);
    }
    std::memcpy(a.loss + b0, loss, sizeof(float) * rows);
    if (!a.grad_rows) return;
    for (int64_t r = 0; r < rows; ++r) {
      const float* u = row_as_float(a.user, b0 + r, u_row);
      const float* p = row_as_float(a.positive, b0 + r, p_row);
      const float* n = row_as_float(a.negative, b0 + r, n_row);
      const float g = sigmoid[r] * a.grad_rows[b0 + r];
      float* grad_user = a.grad_user + (b0 + r) * D;
      float* grad_positive = a.grad_positive + (b0 + r) * D;
      float* grad_negative = a.grad_negative + (b0 + r) * D;
      int64_t k = 0;
      // Six pointers might overlap, for all that the compiler knows: by itself it makes a scalar loop.
      for (; k + kLanes <= D; k += kLanes) {
        const Vec grad = g * load(u + k);
        store(grad_user + k, g * (load(n + k) - load(p + k)));
        store(grad_positive + k, -grad);
        store(grad_negative + k, grad);
      }
      for (; k < D; ++k) {
        grad_user[k] = g * (n[k] - p[k]);
        grad_positive[k] = -g * u[k];
        grad_negative[k] = g * u[k];
      }
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
