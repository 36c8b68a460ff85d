// bpr: loss_b = softplus(<u_b, n_b> - <u_b, p_b>).
#pragma once
#include "common/views.h"

namespace prorec {

struct BprArgs {
  MatrixView user, positive, negative;  // [B, D]
  const float* grad_rows;               // [B] dL/d loss_b, with the gradients
  float* loss;                          // [B]
  float *grad_user, *grad_positive, *grad_negative;  // [B, D] contiguous float32, with grad_rows
  int threads;
};

}  // namespace prorec
