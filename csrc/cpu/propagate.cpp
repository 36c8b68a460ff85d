// Horner's rule on rows scaled by D^-1/2. With y_L = a_L x_L, y_k = a_k x_k + A y_{k+1} and w_k = D^-1/2 y_k,
//   w_k = D^-1/2 a_k x_k + D^-1 R w_{k+1},   out = y_0 = a_0 x_0 + D^-1/2 R w_1,
// so an edge costs the gather and the addition of one row, and there is no array of edge values. Columns are
// independent: they go in blocks of kBlock, whose two tables of all rows stay in cache through the layers.
#include "ops/propagate.h"

#include <cmath>

#include "common/workspace.h"
#include "cpu/philox_lanes.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int64_t kBlock = 8 * kLanes < 64 ? 8 * kLanes : 64;  // columns; at most 8 vectors, for 16 registers
constexpr int64_t kAhead = 16;           // edges between a row's prefetch and its use
constexpr int64_t kCached = 3 << 19;     // bytes: below, the second-level cache is taken to hold the table
constexpr int64_t kRowWork = 4;          // a row's own work, in edges
constexpr int64_t kTaskWork = 4096;      // edges a task
constexpr int64_t kPackRows = 512;       // rows a task

// One half of the graph: its rows, and the table of w of a block of columns, of the layer above and of this one.
struct Half {
  CsrView csr;
  MatrixView x, out;
  float* scale;             // [rows] D^-1/2
  float* table[2];          // [rows, kWidth]
  const int64_t* row_end;   // row r has the edges [csr.indptr[r], row_end[r]) of `indices` and `values`:
  const int32_t* indices;   // those of csr, or with dropout the kept ones
  const float* values;
};

struct Block {
  int64_t first, width;  // columns
  int64_t layer_step;
};

// The block's columns of x_k's row as a padded row, or null for zeros.
template <int kWidth>
PRF_INLINE const float* input_row(const Half& half, const Block& block, int layer, int64_t row, float* scratch) {
  if (!half.x.data) return nullptr;
  const int64_t start = row * half.x.stride + layer * block.layer_step + block.first;
  if (half.x.dtype == DType::kFloat32) {
    const float* x = static_cast<const float*>(half.x.data) + start;
    if (block.width == kWidth) return x;
    for (int64_t k = 0; k < block.width; ++k) scratch[k] = x[k];
  } else {
    const uint16_t* x = static_cast<const uint16_t*>(half.x.data) + start;
    for (int64_t k = 0; k < block.width; ++k) scratch[k] = to_float(x[k]);
  }
  for (int64_t k = block.width; k < kWidth; ++k) scratch[k] = 0;
  return scratch;
}

float degree(const CsrView& csr, int64_t row) {
  if (!csr.values) return static_cast<float>(csr.indptr[row + 1] - csr.indptr[row]);
  double sum = 0;
  for (int64_t e = csr.indptr[row]; e < csr.indptr[row + 1]; ++e) sum += csr.values[e];
  return static_cast<float>(sum);
}

// The first row whose edges start at or after a share of the half's work: the same rows whatever the thread count.
int64_t first_row(const CsrView& csr, int64_t task, int64_t tasks) {
  const int64_t total = csr.indptr[csr.rows] + kRowWork * csr.rows;
  const int64_t wanted = total / tasks * task + total % tasks * task / tasks;
  int64_t low = 0, high = csr.rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (csr.indptr[middle] + kRowWork * middle < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

int64_t task_count(const CsrView& csr) {
  if (csr.rows == 0) return 0;
  const int64_t tasks = (csr.indptr[csr.rows] + kRowWork * csr.rows + kTaskWork - 1) / kTaskWork;
  return tasks < 4096 ? tasks : 4096;
}

template <int kVecs>
PRF_INLINE void prefetch_row(const float* row) {
  for (int64_t byte = 0; byte < kVecs * kLanes * 4; byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// sum += rows of `table` over edges [begin, end), prefetching those of edges below `ahead_end`.
template <int kVecs, bool kWeighted>
PRF_INLINE void add_edges(Vec (&sum)[kVecs], const float* table, const int32_t* indices, const float* values,
                          int64_t begin, int64_t end, int64_t ahead_end) {
  constexpr int kUnroll = kVecs <= 2 ? 4 : kVecs <= 4 ? 2 : 1;  // independent sums hide the latency of an addition
  constexpr int64_t kWidth = kVecs * kLanes;
  Vec sums[kUnroll][kVecs] = {};
  int64_t e = begin;
  for (; e + kUnroll <= end; e += kUnroll) {
    if (e + kAhead + kUnroll <= ahead_end)
      for (int j = 0; j < kUnroll; ++j) prefetch_row<kVecs>(table + indices[e + kAhead + j] * kWidth);
    for (int j = 0; j < kUnroll; ++j) {
      const float* row = table + indices[e + j] * kWidth;
      for (int v = 0; v < kVecs; ++v)
        sums[j][v] += kWeighted ? values[e + j] * load(row + v * kLanes) : load(row + v * kLanes);
    }
  }
  for (; e < end; ++e) {
    if (e + kAhead < ahead_end) prefetch_row<kVecs>(table + indices[e + kAhead] * kWidth);
    const float* row = table + indices[e] * kWidth;
    for (int v = 0; v < kVecs; ++v)
      sums[0][v] += kWeighted ? values[e] * load(row + v * kLanes) : load(row + v * kLanes);
  }
  for (int j = 0; j < kUnroll; ++j)
    for (int v = 0; v < kVecs; ++v) sum[v] += sums[j][v];
}

// Rows [begin, end) of layer k: into the table of this layer, or for layer 0 into out.
template <int kVecs, bool kWeighted>
void layer_rows(const PropagateArgs& a, const Half& half, const Half& other, const Block& block, int layer,
                int64_t begin, int64_t end) {
  constexpr int64_t kWidth = kVecs * kLanes;
  const float* above = other.table[(layer + 1) % 2];
  const float coefficient = a.coefficients[layer];
  const bool dropout = half.indices != half.csr.indices;  // leaves gaps, where there is nothing to prefetch
  const bool cached = other.csr.rows * kWidth * 4 <= kCached;
  const int64_t ahead_end = dropout || cached ? 0 : half.csr.indptr[half.csr.rows];
  alignas(64) float scratch[kWidth];
  for (int64_t row = begin; row < end; ++row) {
    Vec sum[kVecs] = {};
    add_edges<kVecs, kWeighted>(sum, above, half.indices, half.values, half.csr.indptr[row], half.row_end[row],
                                ahead_end);
    for (int v = 0; v < kVecs; ++v) sum[v] *= a.dropout.scale;
    if (a.self_loops)
      for (int v = 0; v < kVecs; ++v) sum[v] += load(half.table[(layer + 1) % 2] + row * kWidth + v * kLanes);

    const float scale = half.scale[row];
    const float sum_scale = layer ? scale * scale : scale, x_scale = layer ? scale * coefficient : coefficient;
    for (int v = 0; v < kVecs; ++v) sum[v] *= sum_scale;
    if (x_scale != 0)
      if (const float* x = input_row<kWidth>(half, block, layer, row, scratch))
        for (int v = 0; v < kVecs; ++v) sum[v] += x_scale * load(x + v * kLanes);
    if (layer) {
      for (int v = 0; v < kVecs; ++v) store(half.table[layer % 2] + row * kWidth + v * kLanes, sum[v]);
    } else {
      float* out = static_cast<float*>(half.out.data) + row * half.out.stride + block.first;
      if (block.width == kWidth) {
        for (int v = 0; v < kVecs; ++v) store(out + v * kLanes, sum[v]);
      } else {
        for (int v = 0; v < kVecs; ++v) store(scratch + v * kLanes, sum[v]);
        for (int64_t k = 0; k < block.width; ++k) out[k] = scratch[k];
      }
    }
  }
}

// w_L = D^-1/2 a_L x_L for rows [begin, end), and the scales themselves when the block is the first.
template <int kVecs>
void pack_rows(const PropagateArgs& a, const Half& half, const Block& block, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = kVecs * kLanes;
  alignas(64) float scratch[kWidth];
  for (int64_t row = begin; row < end; ++row) {
    if (block.first == 0) {
      const float d = degree(half.csr, row) + (a.self_loops ? 1.f : 0.f);
      half.scale[row] = d > 0 ? 1 / std::sqrt(d) : 0.f;
    }
    const float scale = half.scale[row] * a.coefficients[a.layers];
    const float* x = input_row<kWidth>(half, block, a.layers, row, scratch);
    float* w = half.table[a.layers % 2] + row * kWidth;
    for (int v = 0; v < kVecs; ++v) store(w + v * kLanes, x ? scale * load(x + v * kLanes) : Vec{});
  }
}

// Calls body(half, begin, end) over all rows of both halves (of those that are `wanted`), a share of the edges each time.
template <class Body>
PRF_INLINE void for_rows_by_work(const Half (&halves)[2], const bool (&wanted)[2], int threads, const Body& body) {
  int64_t tasks[2];
  for (int h = 0; h < 2; ++h) tasks[h] = wanted[h] ? task_count(halves[h].csr) : 0;
  parallel_for(tasks[0] + tasks[1], threads, [&](int64_t task, int) {
    const int h = task >= tasks[0];
    const int64_t share = h ? task - tasks[0] : task;
    const CsrView& csr = halves[h].csr;
    body(h, first_row(csr, share, tasks[h]), first_row(csr, share + 1, tasks[h]));
  });
}

template <int kVecs>
void propagate_block(const PropagateArgs& a, const Half (&halves)[2], const Block& block, int threads) {
  const int64_t pack_tasks[2] = {(halves[0].csr.rows + kPackRows - 1) / kPackRows,
                                 (halves[1].csr.rows + kPackRows - 1) / kPackRows};
  parallel_for(pack_tasks[0] + pack_tasks[1], threads, [&](int64_t task, int) {
    const Half& half = halves[task >= pack_tasks[0]];
    const int64_t begin = (task >= pack_tasks[0] ? task - pack_tasks[0] : task) * kPackRows;
    const int64_t end = begin + kPackRows < half.csr.rows ? begin + kPackRows : half.csr.rows;
    pack_rows<kVecs>(a, half, block, begin, end);
  });
  for (int layer = a.layers - 1; layer >= 0; --layer) {
    const bool wanted[2] = {layer || halves[0].out.data, layer || halves[1].out.data};
    for_rows_by_work(halves, wanted, threads, [&](int h, int64_t begin, int64_t end) {
      (a.user_rows.values ? layer_rows<kVecs, true> : layer_rows<kVecs, false>)(a, halves[h], halves[1 - h], block,
                                                                                layer, begin, end);
    });
  }
}

// Calls the instance for `vecs` in [1, kVecs].
template <int kVecs>
void dispatch_block(int64_t vecs, const PropagateArgs& a, const Half (&halves)[2], const Block& block, int threads) {
  if constexpr (kVecs > 1)
    if (vecs < kVecs) return dispatch_block<kVecs - 1>(vecs, a, halves, block, threads);
  propagate_block<kVecs>(a, halves, block, threads);
}

// Whether each edge of `row` is kept, one word an edge in `words`, which has room for whole vectors.
PRF_INLINE void draw_edges(const EdgeDropout& dropout, bool row_is_user, int64_t row, const int32_t* indices,
                           int64_t count, uint64_t* words) {
  const WideVec own = wide_splat(static_cast<uint64_t>(row)), none = {}, stream = wide_splat(kEdgeStream);
  for (int64_t e = 0; e < count; e += kWideLanes) {
    int32_t rest[kWideLanes] = {};
    if (e + kWideLanes > count)
      for (int64_t j = e; j < count; ++j) rest[j - e] = indices[j];
    const WideVec other = wide_load(e + kWideLanes <= count ? indices + e : rest);
    const WidePhilox counter = row_is_user ? WidePhilox{own, other, none, stream} : WidePhilox{other, own, none, stream};
    const WideVec word = philox_lanes(dropout.seed, counter).c0;
    std::memcpy(words + e, &word, sizeof word);
  }
}

// The kept edges of rows [begin, end), each row's from where its edges start in the CSR.
void keep_rows(const EdgeDropout& dropout, const CsrView& csr, bool rows_are_users, int64_t begin, int64_t end,
               int64_t* row_end, int32_t* indices, float* values) {
  constexpr int64_t kChunk = 512;
  uint64_t words[kChunk];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t last = csr.indptr[row + 1];
    int64_t n = csr.indptr[row];
    for (int64_t first = n; first < last; first += kChunk) {
      const int64_t count = last - first < kChunk ? last - first : kChunk;
      draw_edges(dropout, rows_are_users, row, csr.indices + first, count, words);
      for (int64_t e = 0; e < count; ++e) {
        indices[n] = csr.indices[first + e];
        if (values) values[n] = csr.values[first + e];
        n += words[e] < dropout.keep_below;
      }
    }
    row_end[row] = n;
  }
}

// Numbers in [0, 1) from the top 24 bits of words.
PRF_INLINE void store_uniform(WideVec words, float* out) {
  typedef float HalfVec __attribute__((vector_size(kWideLanes * 4), aligned(4), may_alias));
  const auto integers = __builtin_convertvector(words >> 8, HalfIVec);
  *reinterpret_cast<HalfVec*>(out) = __builtin_convertvector(integers, HalfVec) * 0x1p-24f;
}

}  // namespace

void propagate(const PropagateArgs& a) {
  const int64_t users = a.user_rows.rows, items = a.item_rows.rows;
  const int64_t dim = a.dim;
  const int64_t edges = a.user_rows.indptr[users];
  const int threads = threads_for((2 * edges + users + items) * dim * a.layers, a.threads);

  const bool dropout = a.dropout.keep_below < uint64_t{1} << 32;
  const bool weighted = a.user_rows.values != nullptr;
  const int64_t width = dim < kBlock ? (dim + kLanes - 1) / kLanes * kLanes : kBlock;
  Half halves[2] = {{a.user_rows, a.user, a.user_out, nullptr, {}, nullptr, nullptr, nullptr},
                    {a.item_rows, a.item, a.item_out, nullptr, {}, nullptr, nullptr, nullptr}};
  size_t bytes = 0;
  for (const Half& half : halves) {
    const int64_t rows = half.csr.rows;
    bytes += Workspace::bytes_for<float>(rows) + 2 * Workspace::bytes_for<float>(rows * width);
    if (dropout) bytes += Workspace::bytes_for<int64_t>(rows) + Workspace::bytes_for<int32_t>(edges);
    if (dropout && weighted) bytes += Workspace::bytes_for<float>(edges);
  }
  Workspace workspace(bytes);
  int64_t* kept_end[2];
  int32_t* kept[2];
  float* kept_values[2] = {};
  for (int h = 0; h < 2; ++h) {
    Half& half = halves[h];
    const int64_t rows = half.csr.rows;
    half.scale = workspace.take<float>(rows);
    for (float*& table : half.table) table = workspace.take<float>(rows * width);
    half.row_end = half.csr.indptr + 1;
    half.indices = half.csr.indices;
    half.values = half.csr.values;
    if (dropout) {
      half.row_end = kept_end[h] = workspace.take<int64_t>(rows);
      half.indices = kept[h] = workspace.take<int32_t>(edges);
      if (weighted) half.values = kept_values[h] = workspace.take<float>(edges);
    }
  }
  if (dropout)
    for_rows_by_work(halves, {true, true}, threads, [&](int h, int64_t begin, int64_t end) {
      keep_rows(a.dropout, halves[h].csr, h == 0, begin, end, kept_end[h], kept[h], kept_values[h]);
    });
  for (int64_t first = 0; first < dim; first += kBlock) {
    const Block block = {first, dim - first < kBlock ? dim - first : kBlock, a.layer_step};
    dispatch_block<kBlock / kLanes>((block.width + kLanes - 1) / kLanes, a, halves, block, threads);
  }
}

void propagate_noise(const PropagateNoiseArgs& a) {
  constexpr int64_t kRows = 64;  // rows a task
  const int64_t rows = a.x.rows, dim = a.x.cols, padded = (dim + 31) / 32 * 32;
  const int threads = threads_for(8 * rows * dim, a.threads);
  Workspace workspace(Workspace::bytes_for<float>(threads * padded));
  float* scratch = workspace.take<float>(threads * padded);

  parallel_for((rows + kRows - 1) / kRows, threads, [&](int64_t task, int slot) {
    float* r = scratch + slot * padded;
    const int64_t end = (task + 1) * kRows < rows ? (task + 1) * kRows : rows;
    for (int64_t row = task * kRows; row < end; ++row) {
      for (int64_t first = 0; first < padded; first += 32)
        for (int64_t lane = 0; lane < 8; lane += kWideLanes) {
          WideVec c0;
          for (int j = 0; j < kWideLanes; ++j) c0[j] = static_cast<uint64_t>(first / 4 + lane + j);
          const WidePhilox words = philox_lanes(a.seed, {c0, wide_splat(static_cast<uint64_t>(row)),
                                                         wide_splat(a.counter), wide_splat(kNoiseStream)});
          store_uniform(words.c0, r + first + lane);
          store_uniform(words.c1, r + first + lane + 8);
          store_uniform(words.c2, r + first + lane + 16);
          store_uniform(words.c3, r + first + lane + 24);
        }
      const float norm = std::sqrt(dot(r, r, dim));
      const float scale = a.eps / (norm > 1e-12f ? norm : 1e-12f);
      float* x = static_cast<float*>(a.x.data) + row * a.x.stride;
      for (int64_t k = 0; k < dim; ++k) {
        const float step = scale * r[k];
        x[k] += x[k] > 0 ? step : x[k] < 0 ? -step : 0.f;
      }
      if (a.total.data) {
        float* total = static_cast<float*>(a.total.data) + row * a.total.stride;
        for (int64_t k = 0; k < dim; ++k) total[k] += a.weight * x[k];
      }
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
