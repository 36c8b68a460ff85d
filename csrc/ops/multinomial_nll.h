// multinomial_nll: with logits_b = hidden_b W^T + bias, loss_b = sum_j x_bj (lse(logits_b) - logits_bj) over the
// targets j of row b. The products are the caller's: a call has the logits of a chunk of rows.
#pragma once
#include "common/views.h"

namespace prorec {

struct MultinomialNllArgs {
  MatrixView logits;       // [B, N] float32, the bias not in them yet; with grad_rows dL/d logits takes their place
  const float* bias;       // [N] or null
  CsrView targets;         // [rows, N]
  const int64_t* rows;     // [B] rows of the targets, or null: the first B
  const float* grad_rows;  // [B] dL/d loss_b, with the gradients
  float* loss;             // [B]
  float* grad_bias;        // [N], added to; with both bias and grad_rows
  int threads;
};

}  // namespace prorec
