// ln(1 + e^x) and its derivative.
#pragma once
#include "cpu/simd.h"

namespace prorec {
namespace PRF_ISA {

// ln(1 + y) for y in [0, 1], relative: the rounding of 1 + y is undone.
PRF_INLINE Vec log1p(Vec y) {
  const Vec w = 1.f + y, rounded = w - 1.f;
  return rounded == 0.f ? y : log(w) * (y / rounded);
}

struct Softplus {
  Vec value, sigmoid;
};

PRF_INLINE Softplus softplus(Vec x) {
  const Vec e = exp2_bounded_above(min(x, -x) * 1.44269504f);  // e^-|x|
  return {max(Vec{}, x) + log1p(e), (x > 0.f ? splat(1.f) : e) / (1.f + e)};
}

}  // namespace PRF_ISA
}  // namespace prorec
