// How sample_negatives draws an item outside one user's row.
#pragma once
#include "common/philox.h"
#include "common/views.h"

namespace prorec {

// A user's items, and the weight of all others. `cumulative` are running sums of the items' weights; null: all are 1.
struct NegativeRow {
  const int32_t* indices;
  int64_t count, room;
};

PRF_HOST_DEVICE int64_t item_weight(const int64_t* cumulative, int64_t item) {
  return cumulative[item] - (item ? cumulative[item - 1] : 0);
}

PRF_HOST_DEVICE NegativeRow negative_row(const CsrView& rows, const int64_t* cumulative, int64_t user) {
  const int64_t begin = rows.indptr[user], end = rows.indptr[user + 1];
  NegativeRow row = {rows.indices + begin, end - begin, rows.cols - (end - begin)};
  if (cumulative) {
    row.room = rows.cols ? cumulative[rows.cols - 1] : 0;
    for (int64_t e = 0; e < row.count; ++e) row.room -= item_weight(cumulative, row.indices[e]);
  }
  return row;
}

// The target-th of the items outside the row. Of these, the e-th of the row's has indices[e] - e before it.
PRF_HOST_DEVICE int64_t uniform_item(const NegativeRow& row, int64_t target) {
  int64_t passed = 0;
  for (int64_t count = row.count; count > 0;) {
    const int64_t half = (count + 1) / 2, e = passed + half - 1;
    passed = row.indices[e] - e <= target ? passed + half : passed;
    count -= half;
  }
  return target + passed;
}

// Point `target` of the weights outside the row as a point of all weights.
PRF_HOST_DEVICE int64_t weighted_point(const NegativeRow& row, const int64_t* cumulative, int64_t target) {
  for (int64_t e = 0; e < row.count; ++e) {
    const int64_t own = item_weight(cumulative, row.indices[e]);
    if (cumulative[row.indices[e]] - own > target) break;
    target += own;
  }
  return target;
}

// The draw that two random words make: an item or, with `cumulative`, a point that the first item with cumulative >
// point holds. -1 where the row leaves nothing to draw.
PRF_HOST_DEVICE int64_t negative_draw(const NegativeRow& row, const int64_t* cumulative, uint32_t high, uint32_t low) {
  if (row.room <= 0) return -1;
  const int64_t target = static_cast<int64_t>(philox_uniform(high, low) * static_cast<double>(row.room));
  return cumulative ? weighted_point(row, cumulative, target) : uniform_item(row, target);
}

}  // namespace prorec
