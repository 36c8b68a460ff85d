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

inline EdgeDropout edge_dropout(uint64_t seed, double keep_prob) {
  return {seed, static_cast<uint64_t>(keep_prob * 0x1p32), static_cast<float>(1 / keep_prob)};
}

struct PropagateArgs {
  CsrView user_rows, item_rows;  // R and its transpose
  MatrixView user, item;         // x_0 .. x_L, [rows, D] when layer_step is 0, else [rows, (L + 1) D]; null data: zeros
  int64_t dim;                   // D
  int64_t layer_step;            // columns between x_k and x_{k+1}: 0 (one x for all) or D
  const float* coefficients;     // a_0 .. a_L
  int layers;                    // L >= 1
  bool self_loops;
  EdgeDropout dropout;
  MatrixView user_out, item_out;  // [rows, D] float32 (on a device, see below); null data: not wanted
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

// A part of a row with so many edges that several warps share it: edges [begin, end).
struct RowSegment {
  int64_t row, begin, end;
};

// Ascending; of equal lengths but for each row's last one. Rows that are no longer than that have none.
struct RowSegments {
  const RowSegment* data;
  int64_t count;
};

// propagate on a device. `out` has the dtype of x. With layer_out_step or noise the layers A^k x_0 are made one after
// the other, each with its noise, and are put side by side or, where layer_out_step is 0, summed with the coefficients
// as weights into a float32 `out`.
struct PropagateCudaArgs {
  PropagateArgs op;     // `threads` and `dropout.seed` are not read
  RowSegments user_segments, item_segments;
  const int64_t* seed;  // on the device; null where nothing is random
  float noise;          // eps of propagate_noise, and its numbers; 0: none
  int64_t layer_out_step;
  MatrixView tables;    // [2 (M + N), W] scratch, rows of whole 32-byte sectors; the dtype of x, for float16 float32
  float* scales;        // [M + N] scratch
  float* partial;       // [segments, W] scratch
  uint32_t* arrived;    // [segments, 512-byte blocks of a row of `tables`] scratch
};

}  // namespace prorec
