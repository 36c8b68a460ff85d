// How sample_negatives draws an item outside one user's row.
#pragma once
#include "common/philox.h"
#include "common/views.h"

namespace prorec {

// A user's items, and the weight of all others. `cumulative` and `place` are those of SampleNegativesArgs, the latter
// from the row's first edge on; null: every weight is 1.
struct NegativeRow {
  const int32_t* indices;
  const int64_t *cumulative, *place;
  int64_t count, room;
};

// The weight of the row's first `count` items.
PRF_HOST_DEVICE int64_t own_weight(const NegativeRow& row, int64_t count) {
  if (!row.cumulative) return count;
  return count ? row.cumulative[row.indices[count - 1]] - row.place[count - 1] : 0;
}

PRF_HOST_DEVICE NegativeRow negative_row(const CsrView& rows, const int64_t* cumulative, const int64_t* place,
                                         int64_t user) {
  const int64_t begin = rows.indptr[user], end = rows.indptr[user + 1];
  NegativeRow row = {rows.indices + begin, cumulative, cumulative ? place + begin : nullptr, end - begin, rows.cols};
  if (cumulative && rows.cols) row.room = cumulative[rows.cols - 1];
  row.room -= own_weight(row, row.count);
  return row;
}

// The number of the row's items with at most `target` of the other items' weight before them.
PRF_HOST_DEVICE int64_t items_passed(const NegativeRow& row, int64_t target) {
  int64_t passed = 0;
  for (int64_t count = row.count; count > 0;) {
    const int64_t half = (count + 1) / 2, e = passed + half - 1;
    const int64_t place = row.cumulative ? row.place[e] : row.indices[e] - e;
    passed = place <= target ? passed + half : passed;
    count -= half;
  }
  return passed;
}

// The draw that two random words make: a point of all weights, which the first item with cumulative > point holds; the
// item itself where every weight is 1. -1 where the row leaves nothing to draw.
PRF_HOST_DEVICE int64_t negative_draw(const NegativeRow& row, uint32_t high, uint32_t low) {
  if (row.room <= 0) return -1;
  const int64_t target = static_cast<int64_t>(philox_uniform(high, low) * static_cast<double>(row.room));
  return target + own_weight(row, items_passed(row, target));
}

}  // namespace prorec
