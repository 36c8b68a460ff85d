// environment_bpr: with b_e = (1, theta_e1 .. theta_eK) and the R = 1 + K rows of a node in its side's tables,
//   x_be = <sum_k b_ek U_k[u], sum_l b_el (I_l[i] - I_l[j])>,  L_e = mean_b softplus(-x_be) (+ alignment_e),
//   total = sum_e L_e + variance_weight Var_e(L_e).
#pragma once
#include "common/views.h"

namespace prorec {

constexpr int kMaxProfiles = 16, kMaxEnvironments = 32;

// The R tables of one side, all of one dtype: [rows, D] each.
struct ProfiledTables {
  MatrixView base;
  TablesView profiles;  // K
};

struct EnvironmentBprArgs {
  ProfiledTables user, item;
  const int64_t *users, *positives, *negatives;  // [B]
  int64_t batch;
  const float* weights;  // [E, K] theta
  int environments, profiles;
  const float* alignment;  // [E] or null
  double variance_weight;
  bool unbiased;
  float *total, *losses, *variance;  // losses: [E], read for the gradients
  float* sigmoid;                    // [B, E] of -x_be, or null; read for the gradients
  int threads;
};

// The tables' gradients are contiguous and null where they are not wanted. On CPUs they are float32, and all of their
// rows are written; on devices they have the tables' dtype, and the rows of no triplet are as they were.
struct EnvironmentBprBwdArgs {
  EnvironmentBprArgs op;
  const float *grad_total, *grad_losses, *grad_variance;  // each may be null: zeros
  float* grad_alignment;                                  // [E]
  void *grad_user, *grad_item;                            // [M, D], [N, D]
  void *grad_user_profiles, *grad_item_profiles;          // [K, M, D], [K, N, D]
};

struct EnvironmentBprCudaArgs {
  EnvironmentBprArgs op;
  double* parts;  // [blocks, E]
  int blocks;
  int32_t* keys;  // [3, B] or null: each triplet's user, then its items as M + item
};

struct EnvironmentBprBwdCudaArgs {
  EnvironmentBprBwdArgs op;
  const int32_t* keys;   // [3 B] in ascending order
  const int64_t* order;  // [3 B] where they stood, equal keys as they came
};

}  // namespace prorec
