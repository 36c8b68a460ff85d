// One user's part in ranking_metrics.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "ops/ranking_metrics.h"

namespace prorec {

constexpr int kUserMetrics = kNumRankingMetrics - 1;  // those that are means over users

// What a hit at a 0-based rank gains.
PRF_HOST_DEVICE double rank_gain(int64_t rank) { return 1 / log2(static_cast<double>(rank + 2)); }

PRF_HOST_DEVICE bool contains(const int32_t* sorted, int64_t n, int64_t item) {
  while (n > 8) {
    const int64_t half = n / 2;
    sorted += sorted[half] <= item ? half : 0;
    n -= half;
  }
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= sorted[i] == item;
  return found;
}

struct RankedHits {
  int64_t hits, first;  // first: the 1-based rank of the first one, 0 without one
  double dcg, precisions;
};

// Adds a hit at a 0-based rank above those before.
PRF_HOST_DEVICE void add_hit(RankedHits& found, int64_t rank, double gain) {
  ++found.hits;
  if (found.first == 0) found.first = rank + 1;
  found.dcg += gain;
  found.precisions += static_cast<double>(found.hits) / static_cast<double>(rank + 1);
}

// Adds the metrics of the first k ranks to sum[kUserMetrics]; `ideal` holds the running sum of the ranks' gains.
PRF_HOST_DEVICE void add_metrics(const RankedHits& found, int64_t k, int64_t relevant, const double* ideal,
                                 double* sum) {
  const int64_t possible = relevant < k ? relevant : k;
  sum[0] += static_cast<double>(found.hits) / static_cast<double>(relevant);
  sum[1] += found.dcg / ideal[possible];
  sum[2] += static_cast<double>(found.hits) / static_cast<double>(k);
  sum[3] += found.first ? 1.0 / static_cast<double>(found.first) : 0.0;
  sum[4] += found.hits ? 1.0 : 0.0;
  sum[5] += found.precisions / static_cast<double>(possible);
}

}  // namespace prorec
