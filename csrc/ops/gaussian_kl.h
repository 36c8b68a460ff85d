// gaussian_kl: loss_b = sum_d beta KL(q || N(0, 1)) + (1 - beta) KL(q || N(m', e^v')), q = N(m, e^v), where
//   KL(q || N(m', e^v')) = (h(v - v') + (m - m')^2 e^-v') / 2,   h(t) = e^t - 1 - t.
#pragma once
#include "common/views.h"

namespace prorec {

struct GaussianKlArgs {
  MatrixView inputs[4];    // [B, D] m, v and, with a prior, m', v'
  bool prior;              // without one the second term is left out
  float beta;
  const float* grad_rows;  // [B] dL/d loss_b, with the gradients
  float* loss;             // [B]
  float* grads[4];         // [B, D] contiguous float32, of the inputs, with grad_rows
  int threads;
};

}  // namespace prorec
