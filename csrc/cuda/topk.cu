#include "ops/topk.h"

#include "common/ranking_key.h"
#include "cuda/element.h"
#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = 8;                      // of four scores, that a thread holds in registers
constexpr int kGroupScores = 4 * kThreads;      // that a block's threads load in one go
constexpr int kTile = kGroups * kGroupScores;
constexpr int kByMaxima = 192;  // up to which k the threads' largest scores say enough about the k-th best one
constexpr float kNone = -INFINITY;
constexpr float kLeast = -3.40282347e38f;  // the least score that is ranked

__host__ __device__ bool sees_last_item(const TopkCudaArgs& a) {
  return a.first_item + a.scores.cols == a.exclude.cols;
}

// A row's candidates. All threads of the block have the same in it.
struct Candidates {
  Key* keys;       // [capacity] in shared memory
  int* next;       // in shared memory: the place of the next one
  int count, capacity, k;
  float bound;  // only scores that reach it can still be among the k best
};

__host__ __device__ constexpr int capacity_for(int k) {
  int capacity = 2 * kGroupScores;
  while (capacity < 3 * k) capacity *= 2;
  return capacity;
}

__device__ float bound_of_ordered(uint32_t ordered) {
  return ordered <= ordered_score(kNone) ? kLeast : score_of_ordered(ordered);
}

__device__ int block_sum(int value) {
  __shared__ int parts[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) sum += parts[w];
  __syncthreads();
  return sum;
}

// Descending. Few keys go each to the place that is the number of larger ones; more are sorted bitonically, with
// room for a power of two of them.
__device__ void sort_keys(Key* keys, int count) {
  const int thread = threadIdx.x;
  if (count <= kThreads) {
    const Key own = thread < count ? keys[thread] : 0;
    int larger = 0;
    if (thread < count)
      for (int i = 0; i < count; ++i) larger += keys[i] > own;
    __syncthreads();
    if (thread < count) keys[larger] = own;
    __syncthreads();
    return;
  }
  int size = 2 * kThreads;
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += kThreads) keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      for (int pair = thread; pair < size / 2; pair += kThreads) {
        const int low = 2 * pair - (pair & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      // Up to a step of kWarp, a warp's pairs are those of 64 keys that no other warp touches.
      if (step > kWarp || (step == 1 && run > kWarp))
        __syncthreads();
      else
        __syncwarp();
    }
}

// Sorts the candidates and keeps the k best.
__device__ void cut(Candidates& c) {
  sort_keys(c.keys, c.count);
  if (c.count >= c.k) {
    c.count = c.k;
    // The items that follow come after those found, so an equal score of theirs loses.
    c.bound = score_of_ordered(static_cast<uint32_t>(c.keys[c.k - 1] >> 32) + 1);
  }
  if (threadIdx.x == 0) *c.next = c.count;
  __syncthreads();
}

// A bound that at least k of the tile's scores reach and, unless they are equal, not many more; kLeast where fewer than
// k of them, or for a small k fewer than k of the threads' largest, can be ranked.
__device__ float find_bound(const Group<float, 4> (&x)[kGroups], float largest, int k) {
  uint32_t found = 0;
  int reached = kTile;
  for (uint32_t bit = 1u << 31; bit != 0 && reached > k + k / 4; bit >>= 1) {
    const float bound = bound_of_ordered(found | bit);
    int count = largest >= bound;
    if (k <= kByMaxima) {
      count = __syncthreads_count(count);
    } else {
      if (count) {
        count = 0;
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
#pragma unroll
          for (int j = 0; j < 4; ++j) count += x[g].value[j] >= bound;
      }
      count = block_sum(count);
    }
    if (count >= k) {
      found |= bit;
      reached = count;
    }
  }
  return bound_of_ordered(found);
}

// Adds what reaches the bound among the scores x[n] of items item, item + 1, .., each group kGroupScores items behind the
// one before. False, and nothing is added, where there is no room.
template <int n>
__device__ __forceinline__ bool append(Candidates& c, const Group<float, 4> (&x)[n], bool any, int item) {
  if (any) {
    int count = 0;
#pragma unroll
    for (int g = 0; g < n; ++g)
#pragma unroll
      for (int j = 0; j < 4; ++j) count += x[g].value[j] >= c.bound;
    int place = atomicAdd(c.next, count);
    if (place + count <= c.capacity) {
#pragma unroll
      for (int g = 0; g < n; ++g)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (x[g].value[j] >= c.bound) c.keys[place++] = make_key(x[g].value[j], item + g * kGroupScores + j);
    }
  }
  __syncthreads();
  const int next = *c.next;
  __syncthreads();
  const bool fits = next <= c.capacity;
  if (fits) {
    c.count = next;
  } else {
    if (threadIdx.x == 0) *c.next = c.count;
    __syncthreads();
  }
  return fits;
}

// Scores [at, at + 4), -inf from `to` on; a group that starts below `to` is whole.
__device__ __forceinline__ Group<float, 4> load_group(const float* scores, int at, int to) {
  Group<float, 4> x = {{kNone, kNone, kNone, kNone}};
  if (at < to) x = *reinterpret_cast<const Group<float, 4>*>(scores + at);
  return x;
}

// Adds the tile's scores, cutting in between.
__device__ void append_in_groups(Candidates& c, const float* scores, int tile, int to, int first_item) {
  for (int group = tile; group < to && group < tile + kTile; group += kGroupScores) {
    if (c.count + kGroupScores > c.capacity) cut(c);
    const int at = group + 4 * static_cast<int>(threadIdx.x);
    const Group<float, 4> x[1] = {load_group(scores, at, to)};
    append(c, x, true, first_item + at);
  }
}

// Makes what is never ranked -inf in scores[from, to) of row u of the excluded items.
__device__ void leave_out(const TopkCudaArgs& a, int64_t u, float* scores, int from, int to) {
  if (u < 0 || u >= a.exclude.rows) __trap();
  int64_t low = a.exclude.indptr[u], high = a.exclude.indptr[u + 1];
  if (low < 0 || high < low || high > a.num_excluded) __trap();
  const int64_t end = high;
  while (high - low > kThreads) {  // to the first that is not below `from`, or near it
    const int64_t middle = low + (high - low) / 2;
    if (a.exclude.indices[middle] < a.first_item + from)
      low = middle;
    else
      high = middle;
  }
  for (int64_t e = low + threadIdx.x; e < end; e += kThreads) {
    const int64_t item = a.exclude.indices[e];
    if (item < 0 || item >= a.exclude.cols) __trap();
    const int64_t at = item - a.first_item;
    if (at >= to) break;
    if (at >= from) scores[at] = kNone;
  }
}

__device__ void write_row(const TopkCudaArgs& a, const Candidates& c, int64_t row) {
  for (int64_t i = threadIdx.x; i < a.k; i += kThreads) {
    a.out_scores[row * a.k + i] = i < c.count ? key_score(c.keys[i]) : kNone;
    a.out_items[row * a.k + i] = i < c.count ? key_item(c.keys[i]) : -1;
  }
}

// A block a part of a row. A tile of scores is held in registers; a bound found from them lets few of them through to
// the sort, so a row costs little more than one read of its scores.
__global__ void __launch_bounds__(kThreads, 4) topk_select_kernel(TopkCudaArgs a) {
  __shared__ int next;
  const int64_t row = blockIdx.x / a.splits;
  const int split = blockIdx.x % a.splits, thread = threadIdx.x;
  const int scored = static_cast<int>(a.scores.cols);
  const int length = static_cast<int>(ceil_div(ceil_div(scored, a.splits), 4)) * 4;
  const int from = static_cast<int64_t>(split) * length < scored ? split * length : scored;
  const int to = scored - from > length ? from + length : scored;
  float* scores = static_cast<float*>(a.scores.data) + row * a.scores.stride;
  uint64_t* carried = a.carried + static_cast<int64_t>(blockIdx.x) * a.kept;

  Candidates c = {dynamic_shared<Key>(), &next, 0, capacity_for(a.kept), a.kept, kLeast};
  if (a.first_item > 0)
    for (int i = thread; i - thread < a.kept; i += kThreads) {
      const Key key = i < a.kept ? carried[i] : 0;
      if (key != 0) c.keys[i] = key;
      c.count += __syncthreads_count(key != 0);
    }
  if (a.exclude.indptr) leave_out(a, a.users ? a.users[row] : a.first_row + row, scores, from, to);
  if (from < to && thread < (4 - to % 4) % 4) scores[to + thread] = kNone;  // so that groups are whole
  if (c.count == c.k) c.bound = score_of_ordered(static_cast<uint32_t>(c.keys[c.k - 1] >> 32) + 1);
  if (thread == 0) next = c.count;
  __syncthreads();

  const int crowd = 2 * c.k > kThreads ? 2 * c.k : kThreads;  // of candidates, that is cut
  bool again = false;
  for (int tile = from; tile < to;) {
    Group<float, 4> x[kGroups];
    float largest = kNone;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) x[g] = load_group(scores, tile + g * kGroupScores + 4 * thread, to);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = fmaxf(largest, x[g].value[j]);

    const bool raise = again || (c.count == 0 && to - tile > crowd);
    if (raise) c.bound = fmaxf(c.bound, find_bound(x, largest, c.k));
    bool fits = append(c, x, largest >= c.bound, a.first_item + tile + 4 * thread);
    if (!fits && raise) {
      append_in_groups(c, scores, tile, to, a.first_item);
      fits = true;
    }
    if (!fits || c.count > crowd) cut(c);
    again = !fits;
    if (fits) tile += kTile;
  }

  cut(c);
  if (a.splits == 1 && sees_last_item(a))
    write_row(a, c, row);
  else
    for (int i = thread; i < a.kept; i += kThreads) carried[i] = i < c.count ? c.keys[i] : 0;
}

// A block a row: the best of what was found in its parts.
__global__ void __launch_bounds__(kThreads) topk_merge_kernel(TopkCudaArgs a) {
  __shared__ int next;
  const int64_t row = blockIdx.x;
  Candidates c = {dynamic_shared<Key>(), &next, 0, capacity_for(a.kept), a.kept, kLeast};
  if (threadIdx.x == 0) next = 0;
  __syncthreads();
  for (int split = 0; split < a.splits; ++split) {
    if (c.count + c.k > c.capacity) cut(c);
    const Key* part = a.carried + (row * a.splits + split) * a.kept;
    for (int i = threadIdx.x; i < a.kept && part[i] != 0; i += kThreads) c.keys[atomicAdd(c.next, 1)] = part[i];
    __syncthreads();
    c.count = next;
    __syncthreads();
  }
  cut(c);
  write_row(a, c, row);
}

}  // namespace

void topk(const TopkCudaArgs& a, Stream stream) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  if (a.scores.rows * a.splits > kMost || a.scores.cols > kMost - kTile || a.kept > kMaxSelected)
    throw std::runtime_error("topk: more rows, items or candidates than one launch takes");
  if (a.scores.rows == 0) return;
  const unsigned rows = static_cast<unsigned>(a.scores.rows), splits = static_cast<unsigned>(a.splits);
  const size_t shared_bytes = static_cast<size_t>(capacity_for(a.kept)) * sizeof(Key);
  launch("topk_select", topk_select_kernel, rows * splits, kThreads, shared_bytes, stream, a);
  if (splits > 1 && sees_last_item(a))
    launch("topk_merge", topk_merge_kernel, rows, kThreads, shared_bytes, stream, a);
}

}  // namespace cuda
}  // namespace prorec
