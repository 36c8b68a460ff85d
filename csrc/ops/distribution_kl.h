// distribution_kl: the student's softmax over all items against a frozen teacher's, one row per user.
//   s_uj = scale * <z_u, z_j>,  q_u = softmax_j s_uj;   t_uj = teacher_scale * <P_u, P_j>,  p_u = softmax_j t_uj
//   cross_entropy = lse(s_u) - sum_j p_uj s_uj;  kl = cross_entropy - H(p_u);  reverse_kl = KL(q||p);  js
// z and P are the unit rows when `normalize`, else the rows as given.
#pragma once
#include "common/views.h"

namespace prorec {

enum class Divergence : int { kCrossEntropy = 0, kKl = 1, kReverseKl = 2, kJs = 3 };

struct DistributionStatsArgs {
  MatrixView user, item;  // [M, T], [N, T]
  float scale;            // 1 / temperature
  bool normalize;
  float* lse;      // [M], of the scaled scores
  float* entropy;  // [M]
  int threads;
};

struct DistributionKlArgs {
  MatrixView user, item;                  // [M, D], [N, D]
  MatrixView teacher_user, teacher_item;  // [M', T], [N, T]
  const int64_t* users;                   // [B] rows of user, or null: rows 0..B-1
  const int64_t* teacher_users;           // [B] rows of teacher_user and of the two statistics, or null
  int64_t batch;
  float scale, teacher_scale;
  bool normalize;
  const float* teacher_lse;      // [M']
  const float* teacher_entropy;  // [M']
  Divergence divergence;
  float eps;               // inside the student's logarithm: log(q + eps)
  const float* grad_rows;  // [B] dL/d loss_u, with the gradients
  float* loss;             // [B] unweighted
  float *grad_user, *grad_item;  // [M, D], [N, D] contiguous float32, or both null: the loss alone
  int threads;
};

}  // namespace prorec
