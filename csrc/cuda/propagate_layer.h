// One layer of propagate on a device: for every row of both halves, the sum of the rows that its edges name.
#pragma once
#include <type_traits>

#include "common/philox.h"
#include "cuda/element.h"
#include "cuda/launch.h"
#include "ops/propagate.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kGroupBytes = 16;  // a lane's share of a row of the tables

// w is y scaled down, which would take what float16 can just hold below its range.
template <class X>
using TableOf = std::conditional_t<std::is_same<X, Float16>::value, float, X>;

// How many columns a lane has.
template <class X>
constexpr int kColumns = kGroupBytes / static_cast<int>(sizeof(TableOf<X>));

// Columns of a caller's matrix, whose groups of neighbours can be accessed at once when `grouped`.
struct Columns {
  void* data;
  int64_t stride;
  bool grouped;
};

// One half of the graph in one launch.
struct Half {
  CsrView csr;
  RowSegments segments;
  int64_t first_segment;    // in both halves' partial sums
  int64_t rows;             // 0: nothing to do
  Columns x, out;           // null data: none
  const void *other, *own;  // the layer above's table of the other half and of this one
  void* table;              // to fill, or null
  float* scale;             // D^-1/2
};

// One launch. The tables hold w_k = D^-1/2 y_k, where y_k is the layer: a term of Horner's rule, or A^k x.
struct LaunchArgs {
  Half halves[2];
  int64_t dim, width;  // of x and of w
  float coefficient;   // of x; of y in a sum of layers
  bool self_loops;
  bool scaled;         // the table gets w, else y
  EdgeDropout dropout;
  const int64_t* seed;
  float* partial;
  uint32_t* arrived;
  int64_t num_arrived;
  float noise;
  int layer;
};

// A lane's columns as sixteen bytes: fewer registers than elements of two bytes each, and, by the intrinsics that load
// and store them, always a single access.
__device__ __forceinline__ uint4 pack(const float* x, float) {
  return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}
__device__ __forceinline__ uint4 pack(const float* x, BFloat16) {
  const auto two = [&](int i) {
    return from_float<BFloat16>(x[i]).bits | static_cast<uint32_t>(from_float<BFloat16>(x[i + 1]).bits) << 16;
  };
  return {two(0), two(2), two(4), two(6)};
}

__device__ __forceinline__ void add_elements(const uint4& bits, float weight, float* sum, float) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += weight * __uint_as_float(words[i]);
}
__device__ __forceinline__ void add_elements(const uint4& bits, float weight, float* sum, BFloat16) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum[2 * i] += weight * __uint_as_float(words[i] << 16);
    sum[2 * i + 1] += weight * __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_group(const float (&from)[kCount], T* to) {
  constexpr int kEach = kGroupBytes / sizeof(T);
#pragma unroll
  for (int i = 0; i < kCount; i += kEach) __stwb(reinterpret_cast<uint4*>(to + i), pack(from + i, T{}));
}

template <class T>
__device__ __forceinline__ uint4 load_group(const T* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}

// sum += weight * x
template <int kCount, class X>
__device__ __forceinline__ void add_columns(const Columns& from, int64_t row, int64_t column, int64_t dim, float weight,
                                            float (&sum)[kCount]) {
  const X* x = static_cast<const X*>(from.data) + row * from.stride + column;
  if (kCount * sizeof(X) == kGroupBytes && from.grouped && column + kCount <= dim) {
    if constexpr (kCount * sizeof(X) == kGroupBytes) add_elements(load_group(x), weight, sum, X{});
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (column + i < dim) sum[i] += weight * to_float(x[i]);
  }
}

template <int kCount, class X>
__device__ __forceinline__ void store_columns(const float (&from)[kCount], const Columns& to, int64_t row,
                                              int64_t column, int64_t dim) {
  X* x = static_cast<X*>(to.data) + row * to.stride + column;
  if (kCount * sizeof(X) >= kGroupBytes && to.grouped && column + kCount <= dim) {
    if constexpr (kCount * sizeof(X) >= kGroupBytes) store_group(from, x);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (column + i < dim) x[i] = from_float<X>(from[i]);
  }
}

// sum += rows of `other`, from this lane's column on, over `count` edges of `row` of half `h`; kLanes lanes an edge, so
// each group of lanes has the sum of its own edges.
template <int kLanes, bool kWeighted, class T, int kCount>
__device__ __forceinline__ void add_edges(const LaunchArgs& a, int h, int64_t row, int64_t begin, int count,
                                          const T* other, bool covered, float (&sum)[kCount]) {
  constexpr int kEdges = kWarp / kLanes;  // at once
  constexpr int kAhead = 4;               // loads in flight: more would spill
  const int32_t* indices = a.halves[h].csr.indices + begin;
  const float* values = a.halves[h].csr.values + begin;
  const int lane = threadIdx.x % kWarp;
  const bool dropout = a.dropout.keep_below < uint64_t{1} << 32;
  int32_t following = lane < count ? indices[lane] : 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kWarp) {
    const int e = first + lane;
    const int32_t index = following;
    if (e + kWarp < count) following = indices[e + kWarp];
    const float weight = kWeighted && e < count ? values[e] : 0.f;
    bool kept = e < count;
    if (dropout) {
      const uint32_t own = static_cast<uint32_t>(row), neighbour = static_cast<uint32_t>(index);
      const uint64_t seed = static_cast<uint64_t>(*a.seed);
      kept &= philox(seed, h ? neighbour : own, h ? own : neighbour, 0, kEdgeStream).c0 < a.dropout.keep_below;
    }
    const unsigned edges = __ballot_sync(kFullMask, kept);
    const int steps = kWarp - __clz(static_cast<int>(edges));
#pragma unroll 1
    for (int step = 0; step < steps; step += kEdges * kAhead) {
      uint4 rows[kAhead];
      float weights[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int source = step + j * kEdges + lane / kLanes;
        const int32_t from = __shfl_sync(kFullMask, index, source);
        weights[j] = kWeighted ? __shfl_sync(kFullMask, weight, source) : 1.f;
        rows[j] = {0, 0, 0, 0};
        if (covered && (edges >> source & 1)) rows[j] = load_group(other + from * a.width);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) add_elements(rows[j], weights[j], sum, T{});
    }
  }
}

// The sum over the groups of lanes, in all of them.
template <int kLanes, int kCount>
__device__ __forceinline__ void add_groups(float (&sum)[kCount]) {
#pragma unroll
  for (int flip = kLanes; flip < kWarp; flip *= 2)
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += __shfl_xor_sync(kFullMask, sum[i], flip);
}

// A warp for each segment, then for each row that has none, and as many times over as blocks of columns cover a row.
template <class X, int kLanes>
__global__ void __launch_bounds__(kThreads, 4) propagate_layer_kernel(LaunchArgs a) {
  using T = TableOf<X>;
  constexpr int kCount = kColumns<X>;
  const int lane = threadIdx.x % kWarp;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kLanes + lane % kLanes) * kCount;
  const bool covered = column < a.width;

  int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t segments = a.halves[0].segments.count + a.halves[1].segments.count;
  const bool is_segment = task < segments;
  if (!is_segment) task -= segments;
  const int64_t user_tasks = is_segment ? a.halves[0].segments.count : a.halves[0].rows;
  const int h = task >= user_tasks;
  if (h) task -= user_tasks;
  const Half& half = a.halves[h];
  if (!is_segment && task >= half.rows) return;

  int64_t row, begin, end;
  const RowSegment* const parts = half.segments.data;
  const int64_t part_length = half.segments.count ? parts->end - parts->begin : INT64_MAX;
  if (is_segment) {
    row = parts[task].row, begin = parts[task].begin, end = parts[task].end;
  } else {
    row = task, begin = half.csr.indptr[row], end = half.csr.indptr[row + 1];
    if (end - begin > part_length) return;
  }

  float sum[kCount] = {};
  const T* other = static_cast<const T*>(half.other) + column;
  if (half.csr.values)
    add_edges<kLanes, true>(a, h, row, begin, static_cast<int>(end - begin), other, covered, sum);
  else
    add_edges<kLanes, false>(a, h, row, begin, static_cast<int>(end - begin), other, covered, sum);
  add_groups<kLanes>(sum);

  if (is_segment) {
    // Whoever comes last of the row's warps adds up what they have left, in an order that does not depend on it.
    const int64_t row_begin = half.csr.indptr[row], edges = half.csr.indptr[row + 1] - row_begin;
    const int64_t first = half.first_segment + task - (begin - row_begin) / part_length;
    if (lane < kLanes && covered) store_group(sum, a.partial + (half.first_segment + task) * a.width + column);
    __threadfence();
    __syncwarp();
    uint32_t* arrived = a.arrived + first * gridDim.y + blockIdx.y;
    uint32_t before = 0;
    if (lane == 0) before = atomicAdd(arrived, static_cast<uint32_t>(end - begin));
    before = __shfl_sync(kFullMask, before, 0);
    __syncwarp();  // what lane 0 has seen, all lanes see
    if (before + (end - begin) != edges) return;
    __threadfence();
    if (lane == 0) *arrived = 0;  // for the next layer
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = 0;
    const int64_t last = first + ceil_div(edges, part_length);
    if (covered)
#pragma unroll 2
      for (int64_t part = first + lane / kLanes; part < last; part += kWarp / kLanes) {
        const float* left = a.partial + part * a.width + column;
#pragma unroll
        for (int i = 0; i < kCount; i += 4)
          add_elements(__ldcg(reinterpret_cast<const uint4*>(left + i)), 1.f, sum + i, 0.f);
      }
    add_groups<kLanes>(sum);
  }

  if (lane >= kLanes || !covered) return;
  const float scale = half.scale[row];
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= a.dropout.scale;
  if (a.self_loops) {
    const T* own = static_cast<const T*>(half.own) + row * a.width + column;
    add_elements(load_group(own), 1.f, sum, T{});
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= scale;
  if (half.x.data) add_columns<kCount, X>(half.x, row, column, a.dim, a.coefficient, sum);
  if (half.out.data) store_columns<kCount, X>(sum, half.out, row, column, a.dim);
  if (!half.table) return;
  const float table_scale = a.scaled ? scale : 1.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= table_scale;
  store_group(sum, static_cast<T*>(half.table) + row * a.width + column);
}

}  // namespace
}  // namespace cuda
}  // namespace prorec
