#include "ops/candidate_items.h"

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {

void candidate_items(const CandidateItemsArgs& a) {
  constexpr int64_t kRows = 64;  // rows a task
  const int64_t M = a.graph.rows, N = a.graph.cols, K = a.num_similar;
  const int64_t tasks = (M + kRows - 1) / kRows, words = (N + 63) / 64, groups = (words + 63) / 64;
  int threads = threads_for(64 * M * K, a.threads);
  threads = threads > tasks ? static_cast<int>(tasks) : threads;
  Workspace workspace(Workspace::bytes_for<int32_t>(threads * N) +
                      Workspace::bytes_for<uint64_t>(threads * (words + groups)));
  // Of each thread, all zero between rows: a count per item, a bit per item that was met, a bit per such word. Walking
  // the bits gives the items in order, and clears what was used.
  int32_t* all_counts = workspace.take<int32_t>(threads * N);
  uint64_t* all_bits = workspace.take<uint64_t>(threads * (words + groups));
  for (int64_t i = 0; i < threads * N; ++i) all_counts[i] = 0;
  for (int64_t i = 0; i < threads * (words + groups); ++i) all_bits[i] = 0;

  parallel_for(tasks, threads, [&](int64_t task, int slot) {
    int32_t* count = all_counts + slot * N;
    uint64_t* met = all_bits + slot * (words + groups);
    uint64_t* met_words = met + words;
    for (int64_t u = task * kRows; u < M && u < (task + 1) * kRows; ++u) {
      for (int64_t s = 0; s < K; ++s) {
        const int64_t v = a.similar[u * K + s];
        if (v < 0) continue;
        for (int64_t e = a.graph.indptr[v]; e < a.graph.indptr[v + 1]; ++e) {
          const int32_t item = a.graph.indices[e];
          ++count[item];
          met[item / 64] |= uint64_t{1} << item % 64;
          met_words[item / 4096] |= uint64_t{1} << item / 64 % 64;
        }
      }
      for (int64_t e = a.graph.indptr[u]; e < a.graph.indptr[u + 1]; ++e) {
        const int32_t item = a.graph.indices[e];
        count[item] = 0;
        met[item / 64] &= ~(uint64_t{1} << item % 64);
      }
      int64_t found = 0;
      for (int64_t group = 0; group < groups; ++group) {
        for (; met_words[group]; met_words[group] &= met_words[group] - 1) {
          const int64_t word = group * 64 + __builtin_ctzll(met_words[group]);
          for (; met[word]; met[word] &= met[word] - 1, ++found) {
            const int64_t item = word * 64 + __builtin_ctzll(met[word]);
            if (a.indptr) {
              a.items[a.indptr[u] + found] = static_cast<int32_t>(item);
              a.counts[a.indptr[u] + found] = count[item];
            }
            count[item] = 0;
          }
        }
      }
      if (a.row_counts) a.row_counts[u] = found;
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
