// The CUDA kernels' launchers: asynchronous on the caller's stream, no allocation, no synchronisation.
#pragma once
#include <string>

#include "ops/candidate_items.h"
#include "ops/environment_bpr.h"
#include "ops/pair_scores.h"
#include "ops/propagate.h"
#include "ops/ranking_metrics.h"
#include "ops/sample_negatives.h"
#include "ops/topk.h"

namespace prorec {
namespace cuda {

using Stream = void*;  // a cudaStream_t, as torch hands it over

// Why the kernels cannot run on the current device; empty when they can.
std::string problem();

void candidate_items(const CandidateItemsArgs&, Stream);
void environment_bpr(const EnvironmentBprCudaArgs&, Stream);
void environment_bpr_bwd(const EnvironmentBprBwdCudaArgs&, Stream);
void pair_scores(const PairScoresArgs&, Stream);
void propagate(const PropagateCudaArgs&, Stream);
void ranking_metrics(const RankingMetricsCudaArgs&, Stream);
void sample_negatives(const SampleNegativesCudaArgs&, Stream);
void topk(const TopkCudaArgs&, Stream);

}  // namespace cuda
}  // namespace prorec
