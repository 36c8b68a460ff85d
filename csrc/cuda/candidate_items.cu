#include "ops/candidate_items.h"

#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 4096;  // items counted at a time: 16 KB, so that an SM's shared memory holds enough blocks

// The first entry of the ascending indices[begin:end] that is `from` or more.
__device__ __forceinline__ int64_t first_from(const int32_t* indices, int64_t begin, int64_t end, int64_t from) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (indices[middle] < from)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A block for a user. Items are counted tile by tile, each tile beginning at the first item that is still to be counted;
// the counts are then written in the order of the items.
__global__ void __launch_bounds__(kThreads) candidate_items_kernel(CandidateItemsArgs a) {
  __shared__ int32_t count[kTile];
  __shared__ int32_t found_by_warp[kWarps];
  __shared__ unsigned next_tile;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int64_t M = a.graph.rows, N = a.graph.cols, K = a.num_similar;
  const int32_t* indices = a.graph.indices;
  for (int64_t u = blockIdx.x; u < M; u += gridDim.x) {
    int64_t found = 0;
    for (int64_t tile = 0, next; tile < N; tile = next) {
      const int64_t end = tile + kTile < N ? tile + kTile : N;
      const int share = static_cast<int>(ceil_div(end - tile, kThreads)) * kWarp;  // of a warp
      for (int i = thread; i < share * kWarps; i += kThreads) count[i] = 0;
      if (thread == 0) next_tile = static_cast<unsigned>(N);
      __syncthreads();

      for (int64_t s = warp; s < K; s += kWarps) {
        const int64_t v = a.similar[u * K + s];
        if (v < -1 || v >= M) __trap();
        if (v < 0) continue;
        const int64_t row_end = a.graph.indptr[v + 1];
        const int64_t first = tile ? first_from(indices, a.graph.indptr[v], row_end, tile) : a.graph.indptr[v];
        for (int64_t e = first + lane; e < row_end; e += kWarp) {
          const int32_t item = indices[e];
          if (item < tile || item >= N) __trap();
          if (item >= end) {
            if (e == first || indices[e - 1] < end) atomicMin(&next_tile, static_cast<unsigned>(item));
            break;
          }
          atomicAdd(&count[item - tile], 1);
        }
      }
      __syncthreads();
      next = next_tile;

      const int64_t own_end = a.graph.indptr[u + 1];
      for (int64_t e = first_from(indices, a.graph.indptr[u], own_end, tile) + thread; e < own_end; e += kThreads) {
        const int32_t item = indices[e];
        if (item < tile) __trap();
        if (item >= end) break;
        count[item - tile] = 0;
      }
      __syncthreads();

      int32_t mine = 0;
      for (int i = lane; i < share; i += kWarp)
        mine += __popc(__ballot_sync(kFullMask, count[warp * share + i] != 0));
      if (lane == 0) found_by_warp[warp] = mine;
      __syncthreads();
      int32_t before = 0, all = 0;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? found_by_warp[w] : 0;
        all += found_by_warp[w];
      }
      if (a.indptr && all) {
        int64_t at = a.indptr[u] + found + before;
        for (int i = lane; i < share; i += kWarp) {
          const int32_t times = count[warp * share + i];
          const unsigned votes = __ballot_sync(kFullMask, times != 0);
          if (times) {
            const int64_t to = at + __popc(votes & ((1u << lane) - 1));
            a.items[to] = static_cast<int32_t>(tile + warp * share + i);
            a.counts[to] = times;
          }
          at += __popc(votes);
        }
      }
      found += all;
      __syncthreads();
    }
    if (a.row_counts && thread == 0) a.row_counts[u] = found;
  }
}

}  // namespace

void candidate_items(const CandidateItemsArgs& a, Stream stream) {
  constexpr int64_t kBlocks = 1 << 20;
  const int64_t blocks = a.graph.rows < kBlocks ? a.graph.rows : kBlocks;
  launch("candidate_items", candidate_items_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, a);
}

}  // namespace cuda
}  // namespace prorec
