// Candidates of a ranking as single integers, selected and sorted without branches on their values, which would be
// mispredicted every other time.
#pragma once
#include "common/ranking_key.h"
#include "cpu/simd.h"

namespace prorec {
namespace PRF_ISA {

PRF_INLINE void swap_keys(Key& a, Key& b) {
  const Key t = a;
  a = b;
  b = t;
}

// Splits keys[low, high) by the median of three of them; returns its place, larger keys standing before it.
PRF_INLINE int64_t partition(Key* keys, int64_t low, int64_t high) {
  const int64_t middle = low + (high - low) / 2, last = high - 1;
  if (keys[middle] > keys[low]) swap_keys(keys[middle], keys[low]);
  if (keys[last] > keys[low]) swap_keys(keys[last], keys[low]);
  if (keys[middle] > keys[last]) swap_keys(keys[middle], keys[last]);
  const Key pivot = keys[last];
  int64_t place = low;
  for (int64_t i = low; i < last; ++i) {
    const Key key = keys[i];
    keys[i] = keys[place];
    keys[place] = key;
    place += key > pivot;
  }
  swap_keys(keys[place], keys[last]);
  return place;
}

// Reorders so that the k largest come first, the least of them at k - 1; 0 < k < n.
PRF_INLINE void select_largest(Key* keys, int64_t n, int64_t k) {
  int64_t low = 0, high = n;
  while (high - low > 1) {
    const int64_t place = partition(keys, low, high);
    if (place == k - 1) return;
    if (place > k - 1)
      high = place;
    else
      low = place + 1;
  }
}

// Sorts up to kRanked keys: each goes to the place that is the number of larger ones.
constexpr int64_t kRanked = 32;
PRF_INLINE void sort_by_rank(Key* keys, int64_t n) {
  Key copy[kRanked];
  for (int64_t i = 0; i < n; ++i) copy[i] = keys[i];
  for (int64_t i = 0; i < n; ++i) {
    int64_t larger = 0;
    for (int64_t j = 0; j < n; ++j) larger += copy[j] > copy[i];
    keys[larger] = copy[i];
  }
}

PRF_INLINE void sort_descending(Key* keys, int64_t n) {
  int64_t waiting[64][2], depth = 0;  // the larger part waits, so that the parts halve and 64 places are enough
  int64_t low = 0, high = n;
  for (;;) {
    while (high - low > kRanked) {
      const int64_t place = partition(keys, low, high);
      const bool left_waits = place - low > high - place;
      waiting[depth][0] = left_waits ? low : place + 1;
      waiting[depth++][1] = left_waits ? place : high;
      low = left_waits ? place + 1 : low;
      high = left_waits ? high : place;
    }
    sort_by_rank(keys + low, high - low);
    if (depth == 0) return;
    low = waiting[--depth][0];
    high = waiting[depth][1];
  }
}

}  // namespace PRF_ISA
}  // namespace prorec
