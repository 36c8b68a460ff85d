// The environments' losses as one number, and its derivative. Host and device.
#pragma once
#include "common/host_device.h"
#include "ops/environment_bpr.h"

namespace prorec {

// The derivative of the losses' variance by each loss is this times its distance from their mean.
PRF_HOST_DEVICE double variance_slope(const EnvironmentBprArgs& a) {
  const int divisor = a.unbiased ? a.environments - 1 : a.environments;
  return 2.0 / (divisor > 1 ? divisor : 1);
}

PRF_HOST_DEVICE double mean_loss(const EnvironmentBprArgs& a) {
  double sum = 0;
  for (int e = 0; e < a.environments; ++e) sum += a.losses[e];
  return sum / a.environments;
}

PRF_HOST_DEVICE void finish_losses(const EnvironmentBprArgs& a) {
  const double mean = mean_loss(a);
  double squares = 0;
  for (int e = 0; e < a.environments; ++e) squares += (a.losses[e] - mean) * (a.losses[e] - mean);
  const double variance = squares * variance_slope(a) / 2;
  *a.variance = static_cast<float>(variance);
  *a.total = static_cast<float>(mean * a.environments + a.variance_weight * variance);
}

// What reaches L_e from the three results. A gradient that does not come brings no NaN of the others with it.
PRF_HOST_DEVICE double grad_loss(const EnvironmentBprBwdArgs& a, int e) {
  double by_variance = 0, grad = 0;
  if (a.grad_total) {
    grad += *a.grad_total;
    by_variance += *a.grad_total * a.op.variance_weight;
  }
  if (a.grad_losses) grad += a.grad_losses[e];
  if (a.grad_variance) by_variance += *a.grad_variance;
  if (a.grad_total || a.grad_variance)
    grad += by_variance * variance_slope(a.op) * (a.op.losses[e] - mean_loss(a.op));
  return grad;
}

}  // namespace prorec
