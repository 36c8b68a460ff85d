// propagate: out = sum_k a_k A^k x_k over both halves of a bipartite graph, A = D^-1/2 R D^-1/2 (or with self loops).
#pragma once
#include "common/views.h"

namespace prorec {

// Edge (user, item) is kept iff the first word of philox(seed, {user, item, 0, kEdgeStream}) is below keep_below.
struct EdgeDropout {
  uint64_t seed;
  uint64_t keep_below;  // keep_prob * 2^32; 2^32 keeps all
  float scale;          // of a kept edge: 1 / keep_prob
};

struct PropagateArgs {
  CsrView user_rows, item_rows;  // R and its transpose
  MatrixView user, item;         // x_0 .. x_L, [rows, D] when layer_step is 0, else [rows, (L + 1) D]; null data: zeros
  int64_t dim;                   // D
  int64_t layer_step;            // columns between x_k and x_{k+1}: 0 (one x for all) or D
  const float* coefficients;     // a_0 .. a_L
  int layers;                    // L >= 1
  bool self_loops;
  EdgeDropout dropout;
  MatrixView user_out, item_out;  // [rows, D] float32; null data: not wanted
  int threads;
};

// x += eps * sign(x) * r / |r|, r uniform in [0, 1); then total += weight * x. Column c of r is word c / 8 % 4 of
// philox(seed, {c / 32 * 8 + c % 8, row, counter, kNoiseStream}): eight neighbours are one word of eight counters.
struct PropagateNoiseArgs {
  MatrixView x;      // [rows, D] float32
  MatrixView total;  // [rows, D] float32, or null data
  float weight, eps;
  uint64_t seed;
  uint32_t counter;
  int threads;
};

}  // namespace prorec
