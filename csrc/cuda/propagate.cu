// Horner's rule on rows scaled by D^-1/2, as in cpu/propagate.cpp: a launch that packs w_L, then one for each layer.
// Where layers are wanted one by one, w_k = D^-1/2 A^k x goes from launch to launch instead.
#include "ops/propagate.h"

#include <type_traits>

#include "common/philox.h"
#include "cuda/element.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/propagate_layer.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int64_t kLongSum = 4096;  // weights; more than these a block adds up together

// The sum of `count` weights over `threads` threads that call it together; each has its share.
__device__ __forceinline__ double add_weights(const float* values, int64_t count, int thread, int threads) {
  double sum = 0;
#pragma unroll 4
  for (int64_t e = thread; e < count; e += threads) sum += values[e];
  for (int flip = kWarp / 2; flip > 0; flip /= 2) sum += __shfl_xor_sync(kFullMask, sum, flip);
  return sum;
}

struct Row {
  int h;
  int64_t row;  // beyond the half's rows: none
};

__device__ __forceinline__ Row find_row(const LaunchArgs& a, int64_t n) {
  const int h = n >= a.halves[0].rows;
  return {h, h ? n - a.halves[0].rows : n};
}

// A warp a row: the row's scale, w = D^-1/2 packed_coefficient x, and layer 0 where layers are wanted one by one: as it
// is, or kSummed with `coefficient` as its weight.
template <class X, bool kSummed>
__global__ void __launch_bounds__(kThreads) propagate_pack_kernel(LaunchArgs a, float packed_coefficient) {
  using T = TableOf<X>;
  constexpr int kCount = kColumns<X>;
  __shared__ double sums[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t n = blockIdx.x * int64_t{kThreads} + threadIdx.x; n < a.num_arrived; n += gridDim.x * int64_t{kThreads})
    a.arrived[n] = 0;

  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps;
  const Row mine = find_row(a, first + warp);
  const Half& half = a.halves[mine.h];
  const bool exists = mine.row < half.rows;
  double degree = 0;
  if (half.csr.values) {
    for (int w = 0; w < kWarps; ++w) {
      const Row r = find_row(a, first + w);
      const CsrView& csr = a.halves[r.h].csr;
      if (r.row >= a.halves[r.h].rows) break;
      const int64_t begin = csr.indptr[r.row], count = csr.indptr[r.row + 1] - begin;
      if (count <= kLongSum) {
        if (warp == w) degree = add_weights(csr.values + begin, count, lane, kWarp);
        continue;
      }
      const double sum = add_weights(csr.values + begin, count, threadIdx.x, kThreads);
      if (lane == 0) sums[warp] = sum;
      __syncthreads();
      if (warp == w)
        for (const double part : sums) degree += part;
      __syncthreads();
    }
  } else if (exists) {
    degree = static_cast<double>(half.csr.indptr[mine.row + 1] - half.csr.indptr[mine.row]);
  }
  if (!exists) return;

  const int64_t row = mine.row;
  const float d = static_cast<float>(degree) + (a.self_loops ? 1.f : 0.f);
  const float scale = d > 0 ? 1 / sqrtf(d) : 0.f;
  if (lane == 0) half.scale[row] = scale;
  for (int64_t column = lane * kCount; column < a.width; column += kWarp * kCount) {
    float x[kCount] = {};
    if (half.x.data) add_columns<kCount, X>(half.x, row, column, a.dim, 1.f, x);
    float w[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) w[i] = scale * packed_coefficient * x[i];
    store_group(w, static_cast<T*>(half.table) + row * a.width + column);
    if (!half.out.data) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (kSummed) x[i] *= a.coefficient;
    store_columns<kCount, std::conditional_t<kSummed, float, X>>(x, half.out, row, column, a.dim);
  }
}

// A warp a row: y of the table gets its noise and becomes w; to `out` it goes as it is, or is added kSummed.
template <class X, bool kSummed>
__global__ void __launch_bounds__(kThreads) propagate_noise_kernel(LaunchArgs a) {
  using T = TableOf<X>;
  using Out = std::conditional_t<kSummed, float, X>;
  const int lane = threadIdx.x % kWarp;
  const Row mine = find_row(a, static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp);
  const Half& half = a.halves[mine.h];
  const int64_t row = mine.row;
  if (row >= half.rows) return;
  const uint64_t seed = static_cast<uint64_t>(*a.seed);
  const uint32_t counter = static_cast<uint32_t>(2 * a.layer + mine.h);
  const int64_t draws = ceil_div(a.dim, 32) * 8;  // of four numbers each
  const auto draw = [&](int64_t n, float (&r)[4]) {
    const Philox drawn = philox(seed, static_cast<uint32_t>(n), static_cast<uint32_t>(row), counter, kNoiseStream);
    const uint32_t words[4] = {drawn.c0, drawn.c1, drawn.c2, drawn.c3};
    for (int j = 0; j < 4; ++j) r[j] = static_cast<float>(words[j] >> 8) * 0x1p-24f;
  };
  const auto column_of = [](int64_t n, int j) { return n / 8 * 32 + n % 8 + 8 * j; };

  float norm = 0, r[4];
  for (int64_t n = lane; n < draws; n += kWarp) {
    draw(n, r);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column_of(n, j) < a.dim) norm += r[j] * r[j];
  }
  for (int flip = kWarp / 2; flip > 0; flip /= 2) norm += __shfl_xor_sync(kFullMask, norm, flip);
  const float eps = a.noise / fmaxf(sqrtf(norm), 1e-12f), scale = half.scale[row];

  T* table = static_cast<T*>(half.table) + row * a.width;
  Out* out = static_cast<Out*>(half.out.data) + row * half.out.stride;
  for (int64_t n = lane; n < draws; n += kWarp) {
    float y[4], total[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t column = column_of(n, j);
      y[j] = column < a.dim ? to_float(table[column]) : 0.f;
      total[j] = kSummed && column < a.dim ? to_float(out[column]) : 0.f;
    }
    draw(n, r);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t column = column_of(n, j);
      if (column >= a.dim) continue;
      y[j] += y[j] > 0 ? eps * r[j] : y[j] < 0 ? -eps * r[j] : 0.f;
      table[column] = from_float<T>(scale * y[j]);
      out[column] = from_float<Out>(kSummed ? total[j] + a.coefficient * y[j] : y[j]);
    }
  }
}

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// `m` from `column` on, for groups of `count` columns.
Columns columns_of(const MatrixView& m, int64_t column, int count) {
  if (!m.data) return {nullptr, 0, false};
  const int64_t bytes = element_bytes(m.dtype);
  char* data = static_cast<char*>(m.data) + column * bytes;
  return {data, m.stride, reinterpret_cast<uintptr_t>(data) % (count * bytes) == 0 && m.stride % count == 0};
}

dim3 warps_for(int64_t tasks, int64_t column_blocks = 1) {
  return dim3(static_cast<unsigned>(ceil_div(tasks, kWarps)), static_cast<unsigned>(column_blocks));
}

// Calls body with the lanes that cover a row of `groups` groups of columns, as a constant.
template <int kLanes = 4, class Body>
void with_lanes(int64_t groups, const Body& body) {
  if constexpr (kLanes < kWarp)
    if (groups > kLanes) return with_lanes<2 * kLanes>(groups, body);
  body(std::integral_constant<int, kLanes>());
}

template <class X>
void propagate_as(const PropagateCudaArgs& a, Stream stream) {
  using T = TableOf<X>;
  constexpr int kCount = kColumns<X>;
  const PropagateArgs& op = a.op;
  const CsrView* csrs[2] = {&op.user_rows, &op.item_rows};
  const MatrixView *inputs[2] = {&op.user, &op.item}, *outputs[2] = {&op.user_out, &op.item_out};
  const RowSegments* segments[2] = {&a.user_segments, &a.item_segments};
  const int64_t users = csrs[0]->rows, rows = users + csrs[1]->rows, width = a.tables.cols, groups = width / kCount;
  const int64_t num_segments = segments[0]->count + segments[1]->count;
  const bool by_layer = a.layer_out_step || a.noise > 0, summed = a.noise > 0 && !a.layer_out_step;
  const auto table = [&](int layer, int h) {
    return static_cast<T*>(a.tables.data) + (layer % 2 * rows + h * users) * width;
  };

  LaunchArgs launched = {};
  launched.dim = op.dim;
  launched.width = width;
  launched.self_loops = op.self_loops;
  launched.dropout = op.dropout;
  launched.seed = a.seed;
  launched.partial = a.partial;
  launched.arrived = a.arrived;
  launched.num_arrived = num_segments * ceil_div(groups, kWarp);
  launched.noise = a.noise;
  for (int h = 0; h < 2; ++h) {
    Half& half = launched.halves[h];
    half.csr = *csrs[h];
    half.first_segment = h * segments[0]->count;
    half.rows = csrs[h]->rows;
    half.scale = a.scales + h * users;
    half.x = columns_of(*inputs[h], by_layer ? 0 : op.layers * op.layer_step, kCount);
    if (by_layer) half.out = columns_of(*outputs[h], 0, kCount);
    half.table = table(op.layers, h);
  }
  launched.coefficient = op.coefficients[0];
  launch("propagate", summed ? propagate_pack_kernel<X, true> : propagate_pack_kernel<X, false>, warps_for(rows),
         kThreads, 0, stream, launched, by_layer ? 1.f : op.coefficients[op.layers]);

  for (int left = op.layers - 1; left >= 0; --left) {
    launched.layer = by_layer ? op.layers - left : left;  // the power of A, or the term of Horner's rule
    launched.coefficient = op.coefficients[launched.layer];
    launched.scaled = a.noise == 0;
    int64_t tasks = 0;
    for (int h = 0; h < 2; ++h) {
      Half& half = launched.halves[h];
      const bool wanted = left || by_layer || outputs[h]->data;
      half.rows = wanted ? csrs[h]->rows : 0;
      half.segments = wanted ? *segments[h] : RowSegments{nullptr, 0};
      half.x = half.out = {nullptr, 0, false};
      if (!by_layer && launched.coefficient != 0)
        half.x = columns_of(*inputs[h], launched.layer * op.layer_step, kCount);
      if (by_layer ? a.noise == 0 : left == 0)
        half.out = columns_of(*outputs[h], by_layer ? launched.layer * a.layer_out_step : 0, kCount);
      half.other = table(left + 1, 1 - h);
      half.own = table(left + 1, h);
      half.table = left || a.noise > 0 ? table(left, h) : nullptr;
      tasks += half.rows + half.segments.count;
    }
    with_lanes(groups, [&](auto lanes) {
      launch("propagate", propagate_layer_kernel<X, lanes>, warps_for(tasks, ceil_div(groups, lanes)), kThreads, 0,
             stream, launched);
    });
    if (a.noise == 0) continue;
    for (int h = 0; h < 2; ++h)
      launched.halves[h].out = columns_of(*outputs[h], launched.layer * a.layer_out_step, kCount);
    launch("propagate", summed ? propagate_noise_kernel<X, true> : propagate_noise_kernel<X, false>, warps_for(rows),
           kThreads, 0, stream, launched);
  }
}

}  // namespace

void propagate(const PropagateCudaArgs& a, Stream stream) {
  const DType dtype = a.op.user.data ? a.op.user.dtype : a.op.item.dtype;
  with_element_type(dtype, [&](auto* element) { propagate_as<std::remove_pointer_t<decltype(element)>>(a, stream); });
}

}  // namespace cuda
}  // namespace prorec
