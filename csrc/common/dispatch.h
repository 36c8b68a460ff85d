// The CPU kernels of the instruction set chosen for this machine.
#pragma once
#include "ops/bpr.h"
#include "ops/candidate_items.h"
#include "ops/distribution_kl.h"
#include "ops/environment_bpr.h"
#include "ops/gaussian_kl.h"
#include "ops/info_nce.h"
#include "ops/mix_environments.h"
#include "ops/multinomial_nll.h"
#include "ops/profile_contrast.h"
#include "ops/propagate.h"
#include "ops/pair_scores.h"
#include "ops/ranking_metrics.h"
#include "ops/sample_negatives.h"
#include "ops/topk.h"

// Every CPU kernel: X(name, arguments). The one list that csrc/cpu, the dispatcher and the bindings share.
#define PRF_CPU_KERNELS(X)                      \
  X(bpr, BprArgs)                               \
  X(candidate_items, CandidateItemsArgs)        \
  X(distribution_kl, DistributionKlArgs)        \
  X(distribution_stats, DistributionStatsArgs)  \
  X(environment_bpr, EnvironmentBprArgs)        \
  X(environment_bpr_bwd, EnvironmentBprBwdArgs) \
  X(gaussian_kl, GaussianKlArgs)                \
  X(info_nce, InfoNceArgs)                      \
  X(mix_environments, MixEnvironmentsArgs)      \
  X(multinomial_nll, MultinomialNllArgs)        \
  X(profile_contrast, ProfileContrastArgs)      \
  X(propagate, PropagateArgs)                   \
  X(propagate_noise, PropagateNoiseArgs)        \
  X(pair_scores, PairScoresArgs)                \
  X(ranking_metrics, RankingMetricsArgs)        \
  X(sample_negatives, SampleNegativesArgs)      \
  X(topk, TopkArgs)

namespace prorec {

struct CpuKernels {
  const char* isa;
#define PRF_MEMBER(name, Args) void (*name)(const Args&);
  PRF_CPU_KERNELS(PRF_MEMBER)
#undef PRF_MEMBER
};

// Chosen once: the best level this processor has, or PROREC_FAST_ISA=baseline|avx2|avx512 where it has that one.
const CpuKernels& cpu_kernels();

}  // namespace prorec
