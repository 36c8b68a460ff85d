#include "ops/ranking_metrics.h"

#include "common/ranked_hits.h"
#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__host__ __device__ constexpr int num_parts(int num_ks) { return num_ks * kNumRankingMetrics + 1; }

// A warp a user: a lane a rank finds the hits, then a lane a cut-off adds them up. Each item's least rank is kept, and
// the one whose atomicMin takes it across a cut-off counts it there: integers, so the order does not matter.
__global__ void __launch_bounds__(kThreads) ranking_metrics_rows_kernel(RankingMetricsCudaArgs a) {
  __shared__ double sums[kWarps][kMaxCutOffs][kUserMetrics];
  __shared__ int counted[kWarps];
  __shared__ int shown[kMaxCutOffs];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int longest = 0;
  for (int c = 0; c < a.num_ks; ++c) longest = a.ks[c] > longest ? a.ks[c] : longest;
  double* gain = dynamic_shared<double>();  // [longest]
  double* ideal = gain + longest;           // [longest + 1] its running sum
  for (int r = threadIdx.x; r < longest; r += kThreads) gain[r] = rank_gain(r);
  if (threadIdx.x < kMaxCutOffs) shown[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    ideal[0] = sum;
    for (int r = 0; r < longest; ++r) ideal[r + 1] = sum += gain[r];
  }
  __syncthreads();

  const int k = lane < a.num_ks ? a.ks[lane] : 0;
  double sum[kUserMetrics] = {};
  int users = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kWarps + warp; u < a.rows; u += stride) {
    const int64_t begin = a.truth.indptr[u], relevant = a.truth.indptr[u + 1] - begin;
    if (begin < 0 || relevant < 0 || begin + relevant > a.num_truth) __trap();
    if (relevant == 0) continue;
    ++users;
    RankedHits found{};
    for (int base = 0; base < longest; base += kWarp) {
      const int rank = base + lane;
      const int64_t item = rank < longest ? a.items[u * a.cols + rank] : -1;
      if (item < -1 || item >= a.truth.cols) __trap();
      // Most items have been seen at a lesser rank already; a value that is out of date only costs an atomic operation.
      if (item >= 0 && a.first_rank[item] > rank) {
        const int before = atomicMin(a.first_rank + item, rank);
        for (int c = 0; c < a.num_ks; ++c)
          if (rank < a.ks[c] && before >= a.ks[c]) atomicAdd(shown + c, 1);
      }
      const bool hit = item >= 0 && contains(a.truth.indices + begin, relevant, item);
      unsigned hits = __ballot_sync(kFullMask, hit);
      const int within = k - base;  // ranks of these 32 that the lane's cut-off takes
      if (within < kWarp) hits &= within > 0 ? (1u << within) - 1 : 0;
      for (; hits; hits &= hits - 1) {
        const int at = base + __ffs(static_cast<int>(hits)) - 1;
        add_hit(found, at, gain[at]);
      }
    }
    if (k > 0) add_metrics(found, k, relevant, ideal, sum);
  }
  if (k > 0)
    for (int m = 0; m < kUserMetrics; ++m) sums[warp][lane][m] = sum[m];
  if (lane == 0) counted[warp] = users;
  __syncthreads();

  double* part = a.parts + static_cast<int64_t>(blockIdx.x) * num_parts(a.num_ks);
  for (int i = threadIdx.x; i < num_parts(a.num_ks); i += kThreads) {
    const int c = i / kNumRankingMetrics, m = i % kNumRankingMetrics;
    double total = 0;
    for (int w = 0; w < kWarps; ++w)
      total += c == a.num_ks ? counted[w] : m < kUserMetrics ? sums[w][c][m] : w == 0 ? shown[c] : 0;
    part[i] = total;
  }
}

// One block: the blocks' parts are added in one order, a warp a sum.
__global__ void __launch_bounds__(kThreads) ranking_metrics_table_kernel(RankingMetricsCudaArgs a) {
  __shared__ double sums[num_parts(kMaxCutOffs)];
  const int lane = threadIdx.x % kWarp, count = num_parts(a.num_ks);
  for (int i = threadIdx.x / kWarp; i < count; i += kWarps) {
    double sum = 0;
    for (int b = lane; b < a.blocks; b += kWarp) sum += a.parts[static_cast<int64_t>(b) * count + i];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullMask, sum, step);
    if (lane == 0) sums[i] = sum;
  }
  __syncthreads();
  const double users = sums[count - 1] > 0 ? sums[count - 1] : 1;
  const double items = a.truth.cols > 0 ? static_cast<double>(a.truth.cols) : 1;
  for (int i = threadIdx.x; i < count - 1; i += kThreads)
    a.table[i] = sums[i] / (i % kNumRankingMetrics < kUserMetrics ? users : items);
}

}  // namespace

void ranking_metrics(const RankingMetricsCudaArgs& a, Stream stream) {
  int longest = 0;
  for (int c = 0; c < a.num_ks; ++c) longest = a.ks[c] > longest ? a.ks[c] : longest;
  if (longest > kMaxCutOff) throw std::runtime_error("ranking_metrics: a cut-off beyond what the kernel takes");
  const unsigned blocks = static_cast<unsigned>(a.blocks);
  launch("ranking_metrics_rows", ranking_metrics_rows_kernel, blocks, kThreads,
         static_cast<size_t>(2 * longest + 1) * sizeof(double), stream, a);
  launch("ranking_metrics_table", ranking_metrics_table_kernel, 1, kThreads, 0, stream, a);
}

}  // namespace cuda
}  // namespace prorec
