// mix_environments: out_e = sum_k w_ek profile_k.
#pragma once
#include "common/views.h"

namespace prorec {

struct MixEnvironmentsArgs {
  TablesView profiles;   // K of [R, C]
  const float* weights;  // [E, K]
  int64_t environments;  // E
  void* out;             // [E, R, C] contiguous, in the profiles' dtype
  int threads;
};

}  // namespace prorec
