#include "ops/topk.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "common/workspace.h"
#include "cpu/score_tile.h"
#include "cpu/select.h"

namespace prorec {
namespace PRF_ISA {
namespace {

// A task is a group of rows against a segment of the items. It packs those items for itself, a chunk at a time: with
// some hundred rows to a group that costs little, and no thread ever waits for another.
constexpr int64_t kMinGroup = 256, kMaxGroup = 4096;
constexpr int64_t kBlock = 96;              // rows that share a panel while it is in L1
constexpr int64_t kChunkBytes = 512 << 10;  // packed panels that stay in L2 while the group's blocks pass
constexpr float kNone = -__builtin_inff();

constexpr int kRows = 4;                     // of a register tile
constexpr int kVecs = kLanes == 16 ? 4 : 2;  // its columns: all 64 of a panel where there are registers for them

// Bit j is set where s[j] > bound; never for a NaN.
PRF_INLINE uint64_t greater_mask(Vec s, Vec bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)s, (__m512)bound, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<uint64_t>(_mm256_movemask_ps((__m256)(s > bound)));
#elif defined(__SSE2__)
  return static_cast<uint64_t>(_mm_movemask_ps((__m128)(s > bound)));
#else
  uint64_t mask = 0;
  for (int j = 0; j < kLanes; ++j) mask |= static_cast<uint64_t>(s[j] > bound[j]) << j;
  return mask;
#endif
}

// What is known of one row: its candidates so far and where it stands in its excluded items.
struct Row {
  float bound;      // only what is above can still be among the k best
  int32_t count;    // candidates
  int64_t excluded, excluded_end;  // positions in exclude_indices
};

// The scores of kRows rows against one panel: mask[r] tells which are above row r's bound, and only rows that have such
// scores are sure to have them stored in scores[kRows][64].
PRF_INLINE void score_rows(const float* x, const float* panel, int64_t depth, const Row* rows, uint64_t* mask,
                           float* scores) {
  for (int r = 0; r < kRows; ++r) mask[r] = 0;
  for (int j = 0; j < kPanel; j += kVecs * kLanes) {
    Vec acc[kRows][kVecs] = {};
    multiply_add(x, depth, 1, panel + j, kPanel, depth, acc);
    for (int r = 0; r < kRows; ++r) {
      const Vec bound = splat(rows[r].bound);
      uint64_t above = 0;
      for (int v = 0; v < kVecs; ++v) above |= greater_mask(acc[r][v], bound) << (v * kLanes);
      if (above == 0) continue;
      mask[r] |= above << j;
      for (int v = 0; v < kVecs; ++v) store(scores + r * kPanel + j + v * kLanes, acc[r][v]);
    }
  }
}

// Lane l of the result is lane which[l] of a and b side by side.
PRF_INLINE Vec shuffle(Vec a, Vec b, IVec which) {
#ifdef __clang__
  Vec out;
  for (int l = 0; l < kLanes; ++l) out[l] = which[l] < kLanes ? a[which[l]] : b[which[l] - kLanes];
  return out;
#else
  return __builtin_shuffle(a, b, which);
#endif
}

// The kLanes x kLanes matrix of rows v, transposed by log2(kLanes) perfect shuffles.
PRF_INLINE void transpose(Vec (&v)[kLanes]) {
  IVec low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
#pragma GCC unroll 8
  for (int stage = 1; stage < kLanes; stage *= 2) {
    Vec shuffled[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = shuffle(v[i], v[i + kLanes / 2], low);
      shuffled[2 * i + 1] = shuffle(v[i], v[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = shuffled[i];
  }
}

// Rows [first, first + 64) of `view` as a panel [D][64], zeros after its last row; scratch is [kLanes + 1][D].
PRF_INLINE void pack_panel(const MatrixView& view, int64_t first, float* panel, float* scratch) {
  const int64_t D = view.cols;
  for (int64_t k = 0; k < D; ++k) scratch[kLanes * D + k] = 0;
  for (int j = 0; j < kPanel; j += kLanes) {
    const float* row[kLanes];
    for (int i = 0; i < kLanes; ++i)
      row[i] = first + j + i < view.rows ? row_as_float(view, first + j + i, scratch + i * D) : scratch + kLanes * D;
    int64_t k = 0;
    for (; k + kLanes <= D; k += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = load(row[i] + k);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * kPanel + j, v[i]);
    }
    for (; k < D; ++k)
      for (int i = 0; i < kLanes; ++i) panel[k * kPanel + j + i] = row[i][k];
  }
}

struct Buffers {
  Row* rows;   // [segments][B], and room to read a whole tile of them
  Key* keys;   // [segments][B][capacity]
  int64_t batch, capacity, k;

  PRF_INLINE_MEMBER Row& row(int64_t segment, int64_t b) const { return rows[segment * batch + b]; }
  PRF_INLINE_MEMBER Key* row_keys(int64_t segment, int64_t b) const {
    return keys + (segment * batch + b) * capacity;
  }
  PRF_INLINE_MEMBER void cut(Row& row, Key* keys) const {
    if (row.count <= k) return;
    select_largest(keys, row.count, k);
    row.count = static_cast<int32_t>(k);
    row.bound = key_score(keys[k - 1]);
  }
};

// Adds the items from `first` on whose bits are set in `mask`, `scores` being those of the 64.
PRF_INLINE void add_candidates(const TopkArgs& a, const Buffers& buffers, Row& row, Key* keys, uint64_t mask,
                               const float* scores, int64_t first) {
  if (a.item.rows - first < kPanel) mask &= (uint64_t{1} << (a.item.rows - first)) - 1;
  for (; row.excluded < row.excluded_end; ++row.excluded) {
    const int64_t offset = a.exclude_indices[row.excluded] - first;
    if (offset >= kPanel) break;
    if (offset >= 0) mask &= ~(uint64_t{1} << offset);
  }
  for (; mask; mask &= mask - 1) {
    const int j = __builtin_ctzll(mask);
    keys[row.count++] = make_key(scores[j], first + j);
  }
  if (row.count > buffers.capacity - kPanel) buffers.cut(row, keys);
}

PRF_INLINE void write_row(const TopkArgs& a, const Buffers& buffers, int64_t segments, int64_t b) {
  Row& row = buffers.row(0, b);
  Key* keys = buffers.row_keys(0, b);
  buffers.cut(row, keys);
  for (int64_t s = 1; s < segments; ++s) {
    Row& other = buffers.row(s, b);
    const Key* others = buffers.row_keys(s, b);
    buffers.cut(other, buffers.row_keys(s, b));
    for (int32_t i = 0; i < other.count; ++i) keys[row.count++] = others[i];
    buffers.cut(row, keys);
  }
  sort_descending(keys, row.count);
  for (int64_t i = 0; i < a.k; ++i) {
    a.scores[b * a.k + i] = i < row.count ? key_score(keys[i]) : kNone;
    a.items[b * a.k + i] = i < row.count ? key_item(keys[i]) : -1;
  }
}

}  // namespace

void topk(const TopkArgs& a) {
  const int64_t B = a.batch, N = a.item.rows, D = a.item.cols;
  const int threads = threads_for(B * N * D, a.threads);
  // Groups enough to go round evenly; for few rows the items are cut into segments with buffers of their own: the k
  // best under a total order are the same however they are found.
  int64_t groups = B / kMinGroup < 4 * threads ? B / kMinGroup : 4 * threads;
  groups = groups * kMaxGroup < B ? (B + kMaxGroup - 1) / kMaxGroup : groups < 1 ? 1 : groups;
  const int64_t group = round_up((B + groups - 1) / groups, kRows), panels = num_panels(N);
  const int64_t segments = groups >= 2 * threads ? 1 : (2 * threads + groups - 1) / groups;
  const int64_t panel_size = D * kPanel;
  int64_t chunk = kChunkBytes / (panel_size * static_cast<int64_t>(sizeof(float)));
  chunk = chunk < 1 ? 1 : chunk > panels ? panels : chunk;

  const int64_t most = a.k < N ? a.k : N;  // candidates a row keeps
  const int64_t limit = most < 8 ? 16 : 2 * most;  // of candidates, at which a row is cut back to the k best
  Buffers buffers{nullptr, nullptr, B, limit + kPanel, most};
  const int64_t slot_size = group * D + chunk * panel_size + (kLanes + 1) * D + kRows * kPanel;
  Workspace workspace(Workspace::bytes_for<Row>(segments * B + kRows) +
                      Workspace::bytes_for<Key>(segments * B * buffers.capacity) +
                      Workspace::bytes_for<float>(threads * slot_size));
  buffers.rows = workspace.take<Row>(segments * B + kRows);
  buffers.keys = workspace.take<Key>(segments * B * buffers.capacity);
  float* slots = workspace.take<float>(threads * slot_size);

  parallel_for(groups * segments, threads, [&](int64_t task, int slot) {
    const int64_t segment = task % segments, from = task / segments * group;
    const int64_t rows = B - from < group ? B - from : group;
    if (rows <= 0) return;
    float* x = slots + slot * slot_size;  // [group][D]
    float* packed = x + group * D;
    float* scratch = packed + chunk * panel_size;
    float* scores = scratch + (kLanes + 1) * D;
    for (int64_t r = 0; r < round_up(rows, kRows); ++r) {
      const int64_t b = from + (r < rows ? r : 0), u = a.users ? a.users[b] : b;
      const float* row = row_as_float(a.user, u, x + r * D);
      if (row != x + r * D) std::memcpy(x + r * D, row, static_cast<size_t>(D) * sizeof(float));
      if (r < rows)
        buffers.row(segment, b) = {kNone, 0, a.exclude_indptr ? a.exclude_indptr[u] : 0,
                                   a.exclude_indptr ? a.exclude_indptr[u + 1] : 0};
    }
    const int64_t last = (segment + 1) * panels / segments;
    for (int64_t begin = segment * panels / segments; begin < last; begin += chunk) {
      const int64_t end = begin + chunk < last ? begin + chunk : last;
      for (int64_t p = begin; p < end; ++p)
        pack_panel(a.item, p * kPanel, packed + (p - begin) * panel_size, scratch);
      for (int64_t block = 0; block < rows; block += kBlock)
        for (int64_t p = begin; p < end; ++p)
          for (int64_t r0 = block; r0 < rows && r0 < block + kBlock; r0 += kRows) {
            uint64_t mask[kRows];
            Row* tile = &buffers.row(segment, from + r0);
            score_rows(x + r0 * D, packed + (p - begin) * panel_size, D, tile, mask, scores);
            for (int64_t r = 0; r < kRows && r0 + r < rows; ++r)
              if (mask[r])
                add_candidates(a, buffers, tile[r], buffers.row_keys(segment, from + r0 + r), mask[r],
                               scores + r * kPanel, p * kPanel);
          }
    }
  });

  constexpr int64_t kSorted = 64;  // rows a task
  parallel_for((B + kSorted - 1) / kSorted, threads, [&](int64_t task, int) {
    for (int64_t b = task * kSorted; b < B && b < (task + 1) * kSorted; ++b) write_row(a, buffers, segments, b);
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
