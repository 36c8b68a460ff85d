// info_nce: for anchor row r with positives given as pairs (r, c),
//   loss_pair = -s_rc + lse_j(s_rj),  s_rj = scale * <a_r, c_j>,  summed over j with column multiplicities m_j;
//   with eps > 0: -log(exp(-loss_pair) + eps).
// Equal rows of a batch are given once, as a row or a column with a multiplicity.
#pragma once
#include "common/views.h"

namespace prorec {

struct InfoNceArgs {
  MatrixView anchor, positive;       // [M, D], [N, D]
  const int64_t *rows, *cols;        // [R], [C] rows of anchor and of positive, or null: all in order
  int64_t num_rows, num_cols;        // R, C
  const float* col_count;            // [C] multiplicity of each column, or null: 1
  const int64_t* pair_indptr;        // [R + 1] pairs of each row, or null: pair r = (r, r)
  const int64_t* pair_cols;          // [B] in [0, C), or null with pair_indptr
  float scale;                       // 1 / temperature
  bool normalize;
  float eps;
  const float* grad_pairs;           // [B] dL/d loss_pair, with the gradients
  float* loss;                       // [B] in pair order
  float *grad_anchor, *grad_positive;  // [M, D], [N, D] contiguous float32, or both null
  int threads;
};

}  // namespace prorec
