#include "ops/gaussian_kl.h"

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

// e^t = 2^n (1 + r + rest), to 2e-7 relative however large t is, which exp2(t log2 e) is not: the product's rounding
// grows with t. Below -86.9, where e^t is less than 2e-38, 0.
struct Exponential {
  Vec half_scale;  // 2^(n - 1), which unlike 2^n is finite wherever e^t is
  Vec r;           // |r| <= ln(2) / 2
  Vec rest;        // e^r - 1 - r, relative to itself
  IVec unscaled;   // n = 0, where r is t
};

PRF_INLINE Exponential exponential(Vec t) {
  const Vec bounded = max(splat(-87.f), min(splat(89.f), t));
  const Vec shifted = bounded * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
  const Vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // less n ln 2, the high part of which is exact
  Vec p = splat(1.9841116e-4f);  // minimax in relative error (5e-9), the constant fixed at 1/2
  p = p * r + 1.3924739e-3f;
  p = p * r + 8.3333785e-3f;
  p = p * r + 4.1666593e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  return {bits<Vec>((bits<UVec>(shifted) + 126) << 23), r, r * r * p, n == 0.f};
}

PRF_INLINE Vec exp(Vec t) {
  const Exponential e = exponential(t);
  return 2 * (e.half_scale * (e.r + e.rest) + e.half_scale);
}

struct Excess {
  Vec exp_less_one;  // e^t - 1
  Vec divergence;    // e^t - 1 - t
};

// To 2e-7 and 1e-6 relative to themselves, where they cancel, too.
PRF_INLINE Excess excess(Vec t) {
  const Exponential e = exponential(t);
  const Vec exp_less_one = 2 * (e.half_scale * (e.r + e.rest) + (e.half_scale - 0.5f));
  return {exp_less_one, e.unscaled ? e.rest : exp_less_one - t};
}

PRF_INLINE Vec load_first(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  Vec v{};
  std::memcpy(&v, p, sizeof(float) * n);
  return v;
}

PRF_INLINE void store_first(float* p, int64_t n, Vec v) {
  if (n >= kLanes)
    store(p, v);
  else
    std::memcpy(p, &v, sizeof(float) * n);
}

// One row's loss, and where kGradients its gradients times `factor`. A column that is not there has q = prior = N(0, 1).
template <bool kPrior, bool kGradients>
PRF_INLINE float row_loss(const GaussianKlArgs& a, const float* const (&in)[4], float* const (&grad)[4], float factor) {
  const int64_t D = a.inputs[0].cols;
  const float beta = a.beta, rest = 1 - a.beta;
  Vec sum{};
  for (int64_t k = 0; k < D; k += kLanes) {
    const int64_t n = D - k;
    const Vec mean = load_first(in[0] + k, n), logvar = load_first(in[1] + k, n);
    const Excess standard = excess(logvar);
    sum += beta * (standard.divergence + mean * mean);
    Vec grad_mean = beta * mean, grad_logvar = beta * standard.exp_less_one;
    if (kPrior) {
      const Vec prior_logvar = load_first(in[3] + k, n), apart = mean - load_first(in[2] + k, n);
      const Excess relative = excess(logvar - prior_logvar);
      const Vec pull = apart * exp(-prior_logvar), square = apart * pull;
      sum += rest * (relative.divergence + square);
      grad_mean += rest * pull;
      grad_logvar += rest * relative.exp_less_one;
      if (kGradients) {
        store_first(grad[2] + k, n, -factor * rest * pull);
        store_first(grad[3] + k, n, -0.5f * factor * rest * (relative.exp_less_one + square));
      }
    }
    if (kGradients) {
      store_first(grad[0] + k, n, factor * grad_mean);
      store_first(grad[1] + k, n, 0.5f * factor * grad_logvar);
    }
  }
  return 0.5f * reduce_add(sum);
}

}  // namespace

void gaussian_kl(const GaussianKlArgs& a) {
  constexpr int64_t kRows = 16;   // rows a task
  constexpr int64_t kWork = 32;   // of an entry, in multiply-adds
  const int64_t B = a.inputs[0].rows, D = a.inputs[0].cols, num_inputs = a.prior ? 4 : 2;
  const int threads = threads_for(kWork * B * D, a.threads);
  Workspace workspace(Workspace::bytes_for<float>(threads * num_inputs * D));
  float* scratch = workspace.take<float>(threads * num_inputs * D);

  parallel_for((B + kRows - 1) / kRows, threads, [&](int64_t task, int slot) {
    for (int64_t b = task * kRows; b < B && b < (task + 1) * kRows; ++b) {
      const float* in[4] = {};
      float* grad[4] = {};
      for (int64_t i = 0; i < num_inputs; ++i) {
        in[i] = row_as_float(a.inputs[i], b, scratch + (slot * num_inputs + i) * D);
        if (a.grad_rows) grad[i] = a.grads[i] + b * D;
      }
      const float factor = a.grad_rows ? a.grad_rows[b] : 0.f;
      if (a.prior)
        a.loss[b] = a.grad_rows ? row_loss<true, true>(a, in, grad, factor) : row_loss<true, false>(a, in, grad, 0);
      else
        a.loss[b] = a.grad_rows ? row_loss<false, true>(a, in, grad, factor) : row_loss<false, false>(a, in, grad, 0);
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
