// ranking_metrics: sums over users of binary-relevance metrics of ranked lists, at several cut-offs in one pass.
// Users without truth are skipped. The formulas stand in prorec_fast/ranking.py.
#pragma once
#include "common/views.h"

namespace prorec {

constexpr int kNumRankingMetrics = 7;  // recall, ndcg, precision, mrr, hit_rate, map, coverage

struct RankingMetricsArgs {
  const int64_t* items;  // [M, K], -1: no item
  int64_t rows, cols;    // M, K
  CsrView truth;         // [M, N]
  const int64_t* ks;     // [num_ks] ascending, each in [1, K]
  int64_t num_ks;
  double* table;         // [num_ks][kNumRankingMetrics]
  int threads;
};

constexpr int kMaxCutOffs = 16, kMaxCutOff = 2048;  // on a device

struct RankingMetricsCudaArgs {
  const int64_t* items;  // [M, K], -1: no item
  int64_t rows, cols;    // M, K
  CsrView truth;         // [M, N]
  int64_t num_truth;     // entries of truth.indices
  int ks[kMaxCutOffs];   // in any order, each in [1, K] and at most kMaxCutOff
  int num_ks;
  int32_t* first_rank;  // [N] workspace, filled with at least K
  double* parts;        // [blocks][num_ks * kNumRankingMetrics + 1] workspace
  int blocks;
  double* table;  // [num_ks][kNumRankingMetrics]
};

}  // namespace prorec
