// bpr: loss_b = softplus(<u_b, n_b> - <u_b, p_b>).
#pragma once
#include "common/views.h"

namespace prorec {

struct BprArgs {
  MatrixView user, positive, negative;  // [B, D]
  float grad_scale;                     // multiplies every row's gradient
  const float* grad_rows;               // [B] further factor per row, or null
  float* loss;                          // [B], or null
  float *grad_user, *grad_positive, *grad_negative;  // [B, D] contiguous float32, each may be null
  int threads;
};

}  // namespace prorec
