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

}  // namespace prorec
