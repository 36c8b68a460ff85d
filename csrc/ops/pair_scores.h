// pair_scores: <user_r, item_j> for the entries (r, j) of a CSR matrix (a sampled product of two dense matrices).
#pragma once
#include "common/views.h"

namespace prorec {

struct PairScoresArgs {
  MatrixView user, item;  // [M, D], [N, D]
  CsrView pairs;          // [M, N], values not read
  float* scores;          // [nnz]
  int threads;
};

}  // namespace prorec
