// topk: for each user row the k items of the largest <u, v>, by (score descending, item ascending).
// Excluded items and scores that are NaN or -inf are left out; places without an item hold -1 and -inf.
#pragma once
#include "common/views.h"

namespace prorec {

struct TopkArgs {
  MatrixView user, item;  // [M, D], [N, D], N < 2^31
  const int64_t* users;   // [B] rows of user and of exclude, or null: rows 0..B-1
  int64_t batch, k;
  const int64_t* exclude_indptr;   // [M + 1], or null
  const int32_t* exclude_indices;  // ascending within a row
  float* scores;   // [B, k]
  int64_t* items;  // [B, k]
  int threads;
};

// The selection on a device, from the scores of some rows against the items from first_item on. The calls for the same
// rows come with the items ascending; what a row has found so far is handed on in `carried`.
struct TopkCudaArgs {
  MatrixView scores;  // [B, items here] float32, written to; its address and its stride are multiples of four elements
  int first_item;
  CsrView exclude;       // [M, N]; indptr null: nothing
  int64_t num_excluded;  // entries of exclude.indices
  const int64_t* users;  // [B], or null: rows first_row, ..
  int64_t first_row;
  int splits;         // blocks that share a row
  int kept;           // candidates a row keeps: min(k, N), at most kMaxSelected
  int64_t k;          // places in an output row
  uint64_t* carried;  // [B, splits, kept]; null where one call without splits sees all items
  float* out_scores;  // [B, k], written by the call that sees the last item
  int64_t* out_items;
};

constexpr int kMaxSelected = 2048;

}  // namespace prorec
