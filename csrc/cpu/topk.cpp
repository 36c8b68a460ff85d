#include "ops/topk.h"

#include <limits>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "common/workspace.h"
#include "cpu/score_tile.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int64_t kMaxBlock = 96;          // rows that share a panel while it is in L1
constexpr int64_t kChunkBytes = 2 << 20;   // packed panels at a time: they stay in L2 while every block passes
constexpr float kNone = -std::numeric_limits<float>::infinity();

// A candidate as one integer that orders by (score descending, item ascending) when larger is better.
using Key = uint64_t;

PRF_INLINE Key make_key(float score, int64_t item) {
  const uint32_t raw = bits<uint32_t>(score + 0.f);  // -0 becomes 0: they are equal scores
  const uint32_t ordered = raw >> 31 ? ~raw : raw | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(item));
}
PRF_INLINE float key_score(Key key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return bits<float>(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
PRF_INLINE int64_t key_item(Key key) { return 0xffffffffu - static_cast<uint32_t>(key); }

PRF_INLINE void swap_keys(Key& a, Key& b) {
  const Key t = a;
  a = b;
  b = t;
}

// Reorders so that the k largest come first, the least of them at k - 1; 0 < k < n. Keys are distinct.
PRF_INLINE void select_largest(Key* keys, int64_t n, int64_t k) {
  int64_t low = 0, high = n;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2, last = high - 1;
    if (keys[middle] > keys[low]) swap_keys(keys[middle], keys[low]);
    if (keys[last] > keys[low]) swap_keys(keys[last], keys[low]);
    if (keys[middle] > keys[last]) swap_keys(keys[middle], keys[last]);
    const Key pivot = keys[last];  // the median of the three
    int64_t larger = low;
    for (int64_t i = low; i < last; ++i) {  // without a branch on the keys, which would be mispredicted
      const Key key = keys[i];
      keys[i] = keys[larger];
      keys[larger] = key;
      larger += key > pivot;
    }
    swap_keys(keys[larger], keys[last]);
    if (larger == k - 1) return;
    if (larger > k - 1)
      high = larger;
    else
      low = larger + 1;
  }
}

PRF_INLINE void sift_down(Key* keys, int64_t i, int64_t n) {
  const Key key = keys[i];
  for (int64_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && keys[child + 1] < keys[child]) ++child;
    if (keys[child] >= key) break;
    keys[i] = keys[child];
  }
  keys[i] = key;
}

PRF_INLINE void sort_descending(Key* keys, int64_t n) {
  for (int64_t i = n / 2; i-- > 0;) sift_down(keys, i, n);
  for (int64_t end = n; --end > 0;) {
    swap_keys(keys[0], keys[end]);
    sift_down(keys, 0, end);
  }
}

// Bit j is set where s[j] > bound, j < 64; never for a NaN.
PRF_INLINE uint64_t greater_mask(const float* s, float bound) {
  uint64_t mask = 0;
#if defined(__AVX512F__)
  for (int j = 0; j < kPanel; j += 16)
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask((__m512)load(s + j), _mm512_set1_ps(bound), _CMP_GT_OQ)) << j;
#elif defined(__AVX2__)
  for (int j = 0; j < kPanel; j += 8)
    mask |= static_cast<uint64_t>(_mm256_movemask_ps((__m256)(load(s + j) > splat(bound)))) << j;
#elif defined(__SSE2__)
  for (int j = 0; j < kPanel; j += 4)
    mask |= static_cast<uint64_t>(_mm_movemask_ps((__m128)(load(s + j) > splat(bound)))) << j;
#else
  for (int j = 0; j < kPanel; ++j) mask |= static_cast<uint64_t>(s[j] > bound) << j;
#endif
  return mask;
}

// What is known of one row: its candidates so far and where it stands in its excluded items.
struct Row {
  float bound;      // only what is above can still be among the k best
  int32_t count;    // candidates
  int64_t excluded, excluded_end;  // positions in exclude_indices
};

struct Buffers {
  Row* rows;   // [segments][B]
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

// The scores of one row against the 64 items from `first` on.
PRF_INLINE void add_candidates(const TopkArgs& a, const Buffers& buffers, Row& row, Key* keys, const float* scores,
                               int64_t first) {
  uint64_t mask = greater_mask(scores, row.bound);
  if (a.item.rows - first < kPanel) mask &= (uint64_t{1} << (a.item.rows - first)) - 1;
  if (mask == 0) return;
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
  // Blocks small enough to go round, and for few rows the items cut into segments with buffers of their own: the
  // k best under a total order are the same however they are found.
  int64_t block = round_up((B + 4 * threads - 1) / (4 * threads), kTileRows);
  block = block > kMaxBlock ? kMaxBlock : block;
  const int64_t blocks = block ? (B + block - 1) / block : 0;
  const int64_t segments = blocks == 0 || blocks >= threads ? 1 : (threads + blocks - 1) / blocks;
  const int64_t panels = num_panels(N), panel_size = D * kPanel;
  int64_t chunk = kChunkBytes / (panel_size * static_cast<int64_t>(sizeof(float)));
  chunk = chunk < segments ? segments : chunk;
  chunk = chunk > panels ? panels : chunk;

  const int64_t most = a.k < N ? a.k : N;  // candidates a row keeps
  Buffers buffers{nullptr, nullptr, B, (2 * most < kPanel ? kPanel : 2 * most) + kPanel, most};
  const int64_t slot_size = block * D + block * kPanel;
  Workspace workspace(Workspace::bytes_for<Row>(segments * B) +
                      Workspace::bytes_for<Key>(segments * B * buffers.capacity) +
                      Workspace::bytes_for<float>(chunk * panel_size) + Workspace::bytes_for<float>(threads * D) +
                      Workspace::bytes_for<float>(block) + Workspace::bytes_for<float>(threads * slot_size));
  buffers.rows = workspace.take<Row>(segments * B);
  buffers.keys = workspace.take<Key>(segments * B * buffers.capacity);
  float* packed = workspace.take<float>(chunk * panel_size);
  float* pack_scratch = workspace.take<float>(threads * D);
  float* zeros = workspace.take<float>(block);
  float* slots = workspace.take<float>(threads * slot_size);
  for (int64_t r = 0; r < block; ++r) zeros[r] = 0;

  for (int64_t segment = 0; segment < segments; ++segment)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t u = a.users ? a.users[b] : b;
      const bool excludes = a.exclude_indptr != nullptr;
      buffers.row(segment, b) = {kNone, 0, excludes ? a.exclude_indptr[u] : 0, excludes ? a.exclude_indptr[u + 1] : 0};
    }

  for (int64_t begin = 0; begin < panels; begin += chunk) {
    const int64_t end = begin + chunk < panels ? begin + chunk : panels;
    const int64_t first = begin * kPanel, count = (end * kPanel < N ? end * kPanel : N) - first;
    MatrixView part = a.item;
    const int64_t element = part.dtype == DType::kFloat32 ? 4 : 2;
    part.data = static_cast<char*>(part.data) + first * part.stride * element;
    pack_panels(part, nullptr, count, D, false, nullptr, packed, nullptr, pack_scratch, threads);

    parallel_for(blocks * segments, threads, [&](int64_t task, int slot) {
      const int64_t segment = task % segments, from = task / segments * block;
      const int64_t rows = B - from < block ? B - from : block, padded = round_up(rows, kTileRows);
      const int64_t segment_begin = begin + segment * (end - begin) / segments;
      const int64_t segment_end = begin + (segment + 1) * (end - begin) / segments;
      float* x = slots + slot * slot_size;
      float* scores = x + block * D;
      for (int64_t r = 0; r < padded; ++r) {
        float* to = x + r * D;
        const int64_t b = from + (r < rows ? r : 0);
        const float* row = row_as_float(a.user, a.users ? a.users[b] : b, to);
        if (row != to) std::memcpy(to, row, static_cast<size_t>(D) * sizeof(float));
      }
      for (int64_t p = segment_begin; p < segment_end; ++p) {
        const float* panel = packed + (p - begin) * panel_size;
        for (int64_t r0 = 0; r0 < padded; r0 += kTileRows) {
          score_panel(x + r0 * D, D, panel, D, zeros, scores, kTileRows);
          for (int64_t r = r0; r < r0 + kTileRows && r < rows; ++r)
            add_candidates(a, buffers, buffers.row(segment, from + r), buffers.row_keys(segment, from + r),
                           scores + (r - r0) * kPanel, p * kPanel);
        }
      }
    });
  }

  constexpr int64_t kRows = 64;
  parallel_for((B + kRows - 1) / kRows, threads, [&](int64_t task, int) {
    for (int64_t b = task * kRows; b < B && b < (task + 1) * kRows; ++b) write_row(a, buffers, segments, b);
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
