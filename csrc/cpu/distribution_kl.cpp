#include "ops/distribution_kl.h"
namespace prorec { namespace PRF_ISA {
void distribution_kl(const DistributionKlArgs&) {} void distribution_stats(const DistributionStatsArgs&) {}
} }
