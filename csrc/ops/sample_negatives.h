// sample_negatives: items outside users' rows, without rejection. A draw is a point among the items' weights laid end
// to end, the row's own left out: target = floor(uniform * (sum of all weights - sum of the row's)). Bisection over the
// row's `place` finds how many of its items lie before the target, and one over `cumulative` the item drawn.
#pragma once
#include "common/views.h"

namespace prorec {

// Draw j of row b takes the first (j even) or second half of philox(seed, {low, high word of b, j / 2,
// kNegativeStream}).
struct SampleNegativesArgs {
  CsrView rows;               // users x items
  const int64_t* users;       // [batch]
  int64_t batch, num;
  const int64_t* cumulative;  // [items] running sums of the items' weights, below 2^52, or null: every weight is 1
  const int64_t* place;       // [nnz] weight of the items before the edge's that are not the user's; with `cumulative`
  uint64_t seed;
  int64_t* out;     // [batch, num]; -1 for a user with no item left
  int64_t* failed;  // set to 1 when there is such a user
  int threads;
};

struct SampleNegativesCudaArgs {
  CsrView rows;
  const int64_t *users, *cumulative, *place;
  int64_t batch, num;
  const int64_t* seed;  // in the device's memory
  int64_t* out;         // [batch, num], as above
};

}  // namespace prorec
