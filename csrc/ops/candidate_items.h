// candidate_items: for each user the items of the users similar to them, with the number of those users that have the
// item; the user's own items left out. Called twice: to count the items of each row, then to fill the rows.
#pragma once
#include "common/views.h"

namespace prorec {

struct CandidateItemsArgs {
  CsrView graph;           // [M, N]
  const int64_t* similar;  // [M, K], -1: nobody
  int64_t num_similar;     // K
  int64_t* row_counts;     // [M] to fill when counting, else null
  const int64_t* indptr;   // [M + 1] where each row goes when filling
  int32_t *items, *counts;  // [indptr[M]], ascending items within a row
  int threads;
};

}  // namespace prorec
