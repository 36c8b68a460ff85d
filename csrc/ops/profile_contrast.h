// profile_contrast: loss_b = sum_k ln(1 + e^(shift + lse_{k' != k} s_kk')), s_kk' = scale <c_kb, c_k'b>, over unit rows
// where normalised.
#pragma once
#include "common/views.h"

namespace prorec {

struct ProfileContrastArgs {
  TablesView profiles;     // K of [B, D]
  int64_t batch;           // rows that are part of the loss: the first ones; the others' results are not written
  float scale;             // 1 / temperature
  float shift;
  bool normalize;
  const float* grad_rows;  // [B] dL/d loss_b, with the gradient
  float* loss;             // [B]
  float* grad_profiles;    // [K, B, D] contiguous float32, with grad_rows
  int threads;
};

}  // namespace prorec
